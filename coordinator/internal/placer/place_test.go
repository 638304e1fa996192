package placer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentapi "warmd/agent/api"
	"warmd/coordinator/internal/agenttest"
	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// after makes a start that takes d.
func after(d time.Duration) func(context.Context, string, agentapi.Claim) error {
	return func(ctx context.Context, _ string, _ agentapi.Claim) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
}

func TestAPlacementIsAssignedAcceptedReadyAndRecorded(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		r.agents[0].Start = after(3 * time.Second)
		c := r.coordinator("c1")
		got := c.place(r.t.Context(), opt("req-1"))
		require.NoError(t, got.err)
		assert.Equal(t, []string{"assigned", "accepted", "ready"}, got.events)
		assert.Equal(t, placement.Ready, got.State)
		assert.NotEmpty(t, got.Endpoint)
		assert.Equal(t, 3*time.Second, got.took)
		rec := r.stored(got.ID)
		assert.Equal(t, placement.Ready, rec.State)
		assert.Equal(t, got.Placement, rec.Placement)
		assert.Equal(t, "c1", rec.Owner)
	})
}

func TestLoadingIsToldAndNeverStored(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		r.agents[0].Start = after(3 * time.Second)
		c := r.coordinator("c1")
		f, err := c.Place(opt("req-1"))
		require.NoError(t, err)
		time.Sleep(time.Second)
		id := f.placementID()
		live, ok := c.Live()[id]
		require.True(t, ok)
		assert.Equal(t, placement.Loading, live.State)
		assert.Equal(t, placement.Assigned, r.stored(id).State)
		time.Sleep(3 * time.Second)
	})
}

func TestReadyIsAnsweredWhileEtcdIsAwayAndRecordedWhenItIsBack(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		r.agents[0].Start = after(time.Second)
		c := r.coordinator("c1")
		f, err := c.Place(opt("req-1"))
		require.NoError(t, err)
		synctest.Wait()
		r.mem.Fail(placement.Errorf(placement.CodeUnavailable, "etcd is away"))
		var last placement.Progress
		require.NoError(t, f.Follow(r.t.Context(), func(l placement.Progress) bool { last = l; return true }))
		assert.Equal(t, placement.EventReady, last.Event)
		again := c.place(r.t.Context(), opt("req-1"))
		assert.Equal(t, last.Placement.ID, again.ID, "and a repeated request is answered from memory")
		time.Sleep(time.Minute)
		r.mem.Fail(nil)
		time.Sleep(5 * time.Second)
		assert.Equal(t, placement.Ready, r.stored(last.Placement.ID).State)
	})
}

func TestSameRequestIDIsTheSamePlacementAndASecondCallerFollows(t *testing.T) {
	bubble(t, 2, func(r *rig) {
		for _, a := range r.agents {
			a.Start = after(2 * time.Second)
		}
		c := r.coordinator("c1")
		var wg sync.WaitGroup
		out := make([]outcome, 20)
		for i := range out {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 200 * time.Millisecond) // some while it starts, some afterwards
				out[i] = c.place(r.t.Context(), opt("req-1"))
			})
		}
		wg.Wait()
		for _, o := range out {
			require.NoError(t, o.err)
			assert.Equal(t, out[0].ID, o.ID)
			assert.Equal(t, out[0].Endpoint, o.Endpoint)
		}
		assert.Len(t, r.history.All(), 1, "one claim in all")
	})
}

func TestAnotherRequestWithAKnownIDIsAConflict(t *testing.T) {
	bubble(t, 2, func(r *rig) {
		r.agents[0].Start = after(time.Second)
		c1, c2 := r.coordinator("c1"), r.coordinator("c2")
		f, err := c1.Place(opt("req-1"))
		require.NoError(t, err)
		synctest.Wait()
		other := opt("req-1")
		other.Model = "llama"
		assert.Equal(t, placement.CodeConflict, code(c1.place(r.t.Context(), other).err), "while it starts, here")
		assert.Equal(t, placement.CodeConflict, code(c2.place(r.t.Context(), other).err), "while it starts, elsewhere")
		require.NoError(t, f.Follow(r.t.Context(), func(placement.Progress) bool { return true }))
		synctest.Wait()
		assert.Equal(t, placement.CodeConflict, code(c1.place(r.t.Context(), other).err), "and afterwards")
	})
}

func TestTwoCoordinatorsWithOneRequestIDMakeOnePlacement(t *testing.T) {
	bubble(t, 3, func(r *rig) {
		for _, a := range r.agents {
			a.Start = after(2 * time.Second)
		}
		c1, c2 := r.coordinator("c1"), r.coordinator("c2")
		var wg sync.WaitGroup
		out := make([]outcome, 10)
		for i := range out {
			wg.Go(func() { out[i] = []*coordinator{c1, c2}[i%2].place(r.t.Context(), opt("req-1")) })
		}
		wg.Wait()
		for _, o := range out {
			require.NoError(t, o.err)
			assert.Equal(t, out[0].ID, o.ID)
		}
		assert.Len(t, r.history.All(), 1)
	})
}

func TestTwoForTheLastSlotOneWinsTheOtherIsToldTheCapacity(t *testing.T) {
	for _, where := range []string{"one coordinator", "two coordinators"} {
		t.Run(where, func(t *testing.T) {
			bubble(t, 1, func(r *rig) {
				r.agents[0].Start = after(time.Second)
				c1 := r.coordinator("c1")
				c2 := c1
				if where == "two coordinators" {
					c2 = r.coordinator("c2")
				}
				var wg sync.WaitGroup
				var a, b outcome
				wg.Go(func() { a = c1.place(r.t.Context(), opt("req-1")) })
				wg.Go(func() { b = c2.place(r.t.Context(), opt("req-2")) })
				wg.Wait()
				won, lost := a, b
				if a.err != nil {
					won, lost = b, a
				}
				require.NoError(t, won.err)
				e := placement.AsError(lost.err)
				assert.Equal(t, placement.CodeNoCapacity, e.Code)
				assert.Contains(t, e.Message, "n1")
				assert.Contains(t, e.Hint, "--wait-capacity")
				require.NotNil(t, e.Capacity)
				assert.Equal(t, "n1", e.Capacity.Node)
			})
		})
	}
}

// The view of this coordinator says that n1 is free; n1 knows better. The refusal
// corrects the view, and the next candidate gets Attempt+1.
func TestARefusalGoesToTheNextCandidateWithTheNextAttempt(t *testing.T) {
	bubble(t, 2, func(r *rig) {
		stale, fresh := r.coordinator("c1"), r.coordinator("c2")
		first := fresh.place(r.t.Context(), opt("req-1"))
		require.NoError(t, first.err)
		second := stale.place(r.t.Context(), opt("req-2"))
		require.NoError(t, second.err)
		assert.NotEqual(t, first.Node, second.Node)
		assert.Equal(t, 2, second.Attempt)
		assert.Equal(t, []string{"assigned", "retry", "assigned", "accepted", "ready"}, second.events)
		for _, n := range stale.fx.Fleet().Nodes {
			assert.Zero(t, n.Devices[0].Free, "the view learnt of both")
		}
	})
}

func TestManyForFewSlotsNeverChooseOneSlotTwice(t *testing.T) {
	bubble(t, 8, func(r *rig) {
		for _, a := range r.agents {
			a.Start = after(time.Second)
		}
		c := r.coordinator("c1")
		var wg sync.WaitGroup
		var won, lost atomic.Int64
		for i := range 100 {
			wg.Go(func() {
				o := c.place(r.t.Context(), opt(fmt.Sprintf("req-%d", i)))
				switch code(o.err) {
				case "":
					won.Add(1)
					assert.Equal(t, 1, o.Attempt, "the overlay made every first choice right")
				case placement.CodeNoCapacity:
					lost.Add(1)
				}
			})
		}
		wg.Wait()
		assert.EqualValues(t, 8, won.Load())
		assert.EqualValues(t, 92, lost.Load())
	})
}

func TestANodeThatLostTheAnswerIsAskedAgainWithTheSameAttempt(t *testing.T) {
	for _, fault := range []agenttest.Fault{agenttest.CutBefore, agenttest.CutAfter, agenttest.CutMiddle, agenttest.Hang} {
		t.Run(fmt.Sprint(fault), func(t *testing.T) {
			bubble(t, 2, func(r *rig) {
				for _, a := range r.agents {
					a.Start = after(3 * time.Second)
				}
				c := r.coordinator("c1")
				var calls atomic.Int64
				c.fx.Fault = func(_, op, _ string) agenttest.Fault {
					if op == "claim" && calls.Add(1) == 1 {
						return fault
					}
					return agenttest.Fine
				}
				got := c.place(r.t.Context(), opt("req-1"))
				require.NoError(t, got.err)
				assert.Equal(t, 1, got.Attempt)
				assert.Len(t, r.history.All(), 1)
				assert.Greater(t, calls.Load(), int64(1))
			})
		})
	}
}

func TestASilentNodeIsGivenUpForAnotherWithinThreeSeconds(t *testing.T) {
	bubble(t, 2, func(r *rig) {
		c := r.coordinator("c1")
		c.fx.Fault = func(node, _, _ string) agenttest.Fault {
			if node == "n1" {
				return agenttest.CutBefore
			}
			return agenttest.Fine
		}
		got := c.place(r.t.Context(), opt("req-1"))
		require.NoError(t, got.err)
		assert.Equal(t, "n2", got.Node)
		assert.Equal(t, 2, got.Attempt)
		assert.Less(t, got.took, 3*time.Second)
		assert.Equal(t, 1, c.fx.Marked["n1"])
	})
}

// n1 takes the claim and nobody hears of it. The placement goes to n2; n1 lets go of
// its worker when nobody has asked for it for a while.
func TestAClaimThatNobodyFollowsEnds(t *testing.T) {
	bubble(t, 2, func(r *rig) {
		for _, a := range r.agents {
			a.Start = after(40 * time.Second)
		}
		c := r.coordinator("c1")
		var first atomic.Bool
		c.fx.Fault = func(node, op, _ string) agenttest.Fault {
			switch {
			case node != "n1" || op != "claim":
				return agenttest.Fine
			case first.CompareAndSwap(false, true):
				return agenttest.CutAfter
			}
			return agenttest.CutBefore
		}
		got := c.place(r.t.Context(), opt("req-1"))
		require.NoError(t, got.err)
		assert.Equal(t, "n2", got.Node)
		assert.Empty(t, r.agents[0].Held())
	})
}

func TestABadModelFailsOnceAndWithTheNodesWords(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		r.agents[0].Start = func(context.Context, string, agentapi.Claim) error {
			return errors.New("engine died: no such architecture Foo")
		}
		c := r.coordinator("c1")
		got := c.place(r.t.Context(), opt("req-1"))
		e := placement.AsError(got.err)
		assert.Equal(t, placement.CodeStartFailed, e.Code)
		assert.Contains(t, e.Message, "no such architecture Foo")
		assert.Len(t, r.history.All(), 1, "the same node is not asked to fail again")
		rec := r.stored(got.ID)
		assert.Equal(t, placement.Failed, rec.State)
		assert.Contains(t, rec.Reason, "no such architecture Foo")

		again := c.place(r.t.Context(), opt("req-1"))
		assert.Equal(t, got.ID, again.ID)
		assert.Equal(t, placement.CodeStartFailed, code(again.err), "a repeated request gets the same answer")
		assert.Contains(t, again.err.Error(), "no such architecture Foo")
	})
}

func TestAFailedStartIsTriedElsewhereUntilAttemptsAreSpent(t *testing.T) {
	bubble(t, 6, func(r *rig) {
		for _, a := range r.agents {
			a.Start = func(context.Context, string, agentapi.Claim) error { return errors.New("out of memory") }
		}
		c := r.coordinator("c1")
		got := c.place(r.t.Context(), opt(""))
		assert.Equal(t, placement.CodeStartFailed, code(got.err))
		assert.Contains(t, got.err.Error(), "4 attempts spent")
		nodes := map[string]bool{}
		for _, i := range r.history.All() {
			nodes[i.Node] = true
		}
		assert.Len(t, nodes, placement.MaxAttempts)
	})
}

func TestADeadlineEndsThePlacementAndTheAgentsWordIsWaitedFor(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		r.agents[0].Start = func(ctx context.Context, _ string, c agentapi.Claim) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Duration(c.DeadlineSeconds * float64(time.Second))):
				return errors.New("not ready in time; last log line: loading shard 3")
			}
		}
		c := r.coordinator("c1")
		req := opt("req-1")
		req.TimeoutSeconds = 7
		got := c.place(r.t.Context(), req)
		assert.InDelta(t, 7, got.took.Seconds(), 0.1)
		assert.Contains(t, got.err.Error(), "loading shard 3")
	})
}

func TestAHungAgentCannotHoldAPlacementBeyondItsDeadline(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		r.agents[0].Start = after(time.Hour)
		c := r.coordinator("c1")
		req := opt("req-1")
		req.TimeoutSeconds = 7
		got := c.place(r.t.Context(), req)
		assert.Equal(t, placement.CodeTimeout, code(got.err))
		assert.LessOrEqual(t, got.took, 13*time.Second)
		assert.Equal(t, placement.Failed, r.stored(got.ID).State)
	})
}

func TestReleasedWhileStartingEndsReleased(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		r.agents[0].Start = after(time.Minute)
		c := r.coordinator("c1")
		f, err := c.Place(opt("req-1"))
		require.NoError(t, err)
		time.Sleep(time.Second)
		_, err = r.agents[0].Release(f.placementID())
		require.NoError(t, err)
		synctest.Wait()
		assert.Equal(t, placement.Released, r.stored(f.placementID()).State)
		assert.Equal(t, placement.CodeReleased, code(c.place(r.t.Context(), opt("req-1")).err))
	})
}

func TestEtcdDownRefusesAtOnceAndNothingStartsLater(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c := r.coordinator("c1")
		r.mem.Fail(placement.Errorf(placement.CodeUnavailable, "etcd is away"))
		got := c.place(r.t.Context(), opt("req-1"))
		assert.Equal(t, placement.CodeUnavailable, code(got.err))
		assert.Less(t, got.took, 2*time.Second)
		r.mem.Fail(nil)
		time.Sleep(2 * time.Minute)
		assert.Empty(t, r.history.All())
		assert.NoError(t, c.place(r.t.Context(), opt("req-1")).err, "the slot and the request id are free")
	})
}

// etcd has the record, but we were never told. The caller was told no: the record must
// not come to life, and its request id must not be spent.
func TestACreationWithAnUnknownOutcomeIsUndone(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c := r.coordinator("c1")
		c.fx.loseCreate = true
		assert.Equal(t, placement.CodeUnavailable, code(c.place(r.t.Context(), opt("req-1")).err))
		c.fx.loseCreate = false
		synctest.Wait()
		all, err := r.mem.List(r.t.Context())
		require.NoError(t, err)
		assert.Empty(t, all)
		got := c.place(r.t.Context(), opt("req-1"))
		require.NoError(t, got.err)
		assert.Len(t, r.history.All(), 1)
	})
}

// abandoned is a coordinator whose creation had an unknown outcome while etcd was away
// for so long, and the record, which is there after all.
func (r *rig) abandoned(away time.Duration) (*coordinator, store.Record) {
	r.t.Helper()
	c := r.coordinator("c1")
	c.fx.loseCreate = true
	c.fx.before = func(op string) {
		if op == "created" {
			r.mem.Fail(placement.Errorf(placement.CodeUnavailable, "etcd is away"))
		}
	}
	assert.Equal(r.t, placement.CodeUnavailable, code(c.place(r.t.Context(), opt("req-1")).err))
	time.Sleep(away)
	r.mem.Fail(nil)
	all, err := r.mem.List(r.t.Context())
	require.NoError(r.t, err)
	require.Len(r.t, all, 1)
	return c, all[0]
}

// The same, and etcd is away when we want to undo it: the record that turns up later is
// ours and assigned, and still not resumed.
func TestAnAbandonedRecordThatTurnsUpLaterIsNotStarted(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c, turnsUp := r.abandoned(181 * time.Second) // between two looks of the one who abandoned it
		c.Resume(turnsUp)
		time.Sleep(time.Minute)
		all, err := r.mem.List(r.t.Context())
		require.NoError(t, err)
		assert.Empty(t, all)
		assert.Empty(t, r.history.All())
	})
}

// The one who abandoned it was cut off together with its write, which came to life; the
// sweeper took it over and it serves. Back again, the first one must not delete it.
func TestAnAbandonedRecordThatSomebodyTookOverIsKept(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		_, taken := r.abandoned(9 * time.Second) // between two looks, too
		taken.Owner = "c2"
		_, err := r.mem.Update(r.t.Context(), taken, store.NoFence)
		require.NoError(t, err)
		time.Sleep(3 * time.Minute)
		all, err := r.mem.List(r.t.Context())
		require.NoError(t, err)
		assert.Len(t, all, 1)
	})
}

func TestARepeatedRequestGetsItsPlacementEvenWhenTheFleetIsFull(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c1 := r.coordinator("c1")
		first := c1.place(r.t.Context(), opt("req-1"))
		require.NoError(t, first.err)
		c2 := r.coordinator("c2")
		for _, wait := range []bool{false, true} {
			req := opt("req-1")
			req.WaitCapacity = wait
			again := c2.place(r.t.Context(), req)
			require.NoError(t, again.err)
			assert.Equal(t, first.ID, again.ID)
			assert.Zero(t, again.took)
		}
	})
}

func TestAnEmptyFleetAndUnknownNamesAreExplained(t *testing.T) {
	bubble(t, 0, func(r *rig) {
		e := placement.AsError(r.coordinator("c1").place(r.t.Context(), opt("")).err)
		assert.Equal(t, placement.CodeNoCapacity, e.Code)
		assert.Contains(t, e.Message, "no node")
	})
	bubble(t, 7, func(r *rig) {
		c := r.coordinator("c1")
		req := opt("")
		req.Runtime = "sglang"
		e := placement.AsError(c.place(r.t.Context(), req).err)
		assert.Equal(t, placement.CodeUnknownRuntime, e.Code)
		assert.Contains(t, e.Message, "sglang")
		assert.Contains(t, e.Message, "and 2 more")
		req = opt("")
		req.Node = "nowhere"
		e = placement.AsError(c.place(r.t.Context(), req).err)
		assert.Equal(t, placement.CodeNotFound, e.Code)
		assert.Contains(t, e.Message, "nowhere")
		assert.Equal(t, placement.CodeBadRequest, code(c.place(r.t.Context(), placement.Request{}).err))
	})
}

func TestADryRunPlacesNothing(t *testing.T) {
	bubble(t, 2, func(r *rig) {
		c := r.coordinator("c1")
		d, err := c.Decide(opt(""))
		require.NoError(t, err)
		assert.Len(t, d.Candidates, 2)
		assert.Empty(t, r.history.All())
		assert.Empty(t, c.overlay)
	})
}
