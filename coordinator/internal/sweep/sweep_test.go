package sweep

import (
	"context"
	"errors"
	"fmt"
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

// rig is a store, a fleet of two nodes and one sweeper that leads.
type rig struct {
	t     *testing.T
	mem   *store.Mem
	nodes *agenttest.Nodes
	fx    *live
	ctx   context.Context
	s     *Sweeper
	lead  func() // begins to sweep, once the scene is set
}

// live is a world whose fleet is that of the fakes.
type live struct {
	world
	nodes *agenttest.Nodes
}

func (l *live) Fleet() placement.Fleet { return l.nodes.Fleet() }

func bubble(t *testing.T, f func(r *rig), change ...func(*Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &agenttest.History{}
		a, b := agenttest.New("n1", 2, h), agenttest.New("n2", 2, h)
		nodes := agenttest.NewNodes(a, b).Live()
		mem := store.NewMem()
		r := &rig{t: t, mem: mem, nodes: nodes, fx: &live{world: world{Records: mem, Agents: nodes, living: map[string]bool{"me": true}}, nodes: nodes}}
		cfg := Config{Instance: "me", Every: time.Second}
		for _, c := range change {
			c(&cfg)
		}
		ctx, cancel := context.WithCancel(t.Context())
		r.ctx = ctx
		done := make(chan struct{})
		fence := mem.Lead("leader")
		r.s = New(cfg, r.fx)
		r.lead = func() { go func() { defer close(done); r.s.Lead(ctx, fence) }() }
		f(r)
		cancel()
		<-done
		for _, n := range nodes.Agents {
			for _, p := range n.Held() {
				_, _ = n.Release(p.ID)
			}
		}
	})
}

// serve puts a ready placement on a node and in the store.
func (r *rig) serve(id, node string, attempt int) store.Record {
	r.t.Helper()
	r.onNode(id, node, attempt)
	return r.record(id, node, attempt, placement.Ready, "me")
}

func (r *rig) onNode(id, node string, attempt int) {
	r.t.Helper()
	req := placement.Request{ID: "req-" + id, Model: "opt"}.Normalize()
	err := r.nodes.Agents[node].Place(r.ctx, id, agentapi.Claim{Attempt: attempt, Request: req, DeadlineSeconds: 60}, func(placement.Progress) bool { return true })
	require.NoError(r.t, err)
}

func (r *rig) record(id, node string, attempt int, st placement.State, owner string) store.Record {
	r.t.Helper()
	rec, err := r.mem.Create(r.ctx, store.Record{Owner: owner, Placement: placement.Placement{
		ID: id, State: st, Attempt: attempt, Node: node, Request: placement.Request{ID: "req-" + id, Model: "opt"}.Normalize(),
		Created: time.Now(), Updated: time.Now(),
	}}, store.NoFence)
	require.NoError(r.t, err)
	return rec
}

func (r *rig) state(id string) store.Record {
	r.t.Helper()
	synctest.Wait()
	rec, err := r.mem.Get(r.ctx, id)
	require.NoError(r.t, err)
	return rec
}

func TestAnUnfinishedRecordOfADeadOwnerIsTakenOverOnce(t *testing.T) {
	bubble(t, func(r *rig) {
		r.record("p-dead", "n1", 1, placement.Assigned, "gone")
		r.record("p-mine", "n1", 1, placement.Assigned, "me")
		r.fx.living["other"] = true
		r.record("p-other", "n1", 1, placement.Assigned, "other")
		r.lead()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Len(t, r.fx.resumed, 1)
		assert.Equal(t, "p-dead", r.fx.resumed[0].ID)
		assert.Equal(t, "me", r.state("p-dead").Owner)
		assert.Equal(t, "other", r.state("p-other").Owner, "its owner is alive")
	})
}

// The watch of the one who sweeps hung on the member of etcd that went with the dead one.
func TestWhatADeadOwnerWroteLastIsTakenOverBeforeItIsHeardOf(t *testing.T) {
	bubble(t, func(r *rig) {
		r.fx.living["other"] = true
		r.lead()
		time.Sleep(10 * time.Second)
		r.fx.know([]store.Record{})
		r.record("p-last", "n1", 1, placement.Assigned, "other")
		delete(r.fx.living, "other")
		time.Sleep(1100 * time.Millisecond)
		assert.Equal(t, "me", r.state("p-last").Owner)
	})
}

// A host is gone, its agent and its coordinator with it, and nobody has noticed that the
// agent does not answer.
func TestTakingOverWaitsForNoNode(t *testing.T) {
	bubble(t, func(r *rig) {
		r.nodes.Fault = func(node, _, _ string) agenttest.Fault {
			if node == "n1" {
				return agenttest.Hang
			}
			return agenttest.Fine
		}
		r.lead()
		time.Sleep(time.Second / 2)
		r.record("p-dead", "n2", 1, placement.Assigned, "gone")
		r.s.CoordinatorGone()
		assert.Equal(t, "me", r.state("p-dead").Owner, "at once")
	}, func(c *Config) { c.Every = time.Hour })
}

// What changed on a node while nobody heard of it is found when it is back, not with
// the next round.
func TestANodeThatIsBackIsAskedAtOnce(t *testing.T) {
	bubble(t, func(r *rig) {
		r.serve("p-1", "n1", 1)
		r.serve("p-2", "n1", 1)
		r.lead()
		time.Sleep(time.Minute)
		r.nodes.Mark("n1", "failed")
		time.Sleep(5 * time.Second)
		rec := r.state("p-2") // released while its node was away
		rec.State = placement.Released
		_, err := r.mem.Update(r.ctx, rec, store.NoFence)
		require.NoError(t, err)
		r.nodes.Agents["n1"].Kill("p-1")
		r.nodes.Mark("n1", "alive")
		r.s.NodeChanged()
		assert.Equal(t, placement.Failed, r.state("p-1").State)
		assert.Equal(t, "engine died: signal 9", r.state("p-1").Reason)
		assert.Empty(t, r.nodes.Agents["n1"].Held())
	}, func(c *Config) { c.Every, c.Reconcile = time.Second, 10*time.Minute })
}

// A call did not reach it: that says nothing about the next one.
func TestASuspectNodeIsAskedToo(t *testing.T) {
	bubble(t, func(r *rig) {
		r.serve("p-1", "n1", 1)
		r.lead()
		time.Sleep(time.Minute)
		r.nodes.Agents["n1"].Kill("p-1")
		r.nodes.Mark("n1", "suspect")
		time.Sleep(2 * time.Second)
		assert.Equal(t, placement.Failed, r.state("p-1").State)
	}, func(c *Config) { c.Reconcile = 10 * time.Minute })
}

func TestALivingOwnerLongOverdueLosesTheRecord(t *testing.T) {
	bubble(t, func(r *rig) {
		r.fx.living["hung"] = true
		r.record("p-1", "n1", 1, placement.Assigned, "hung")
		r.lead()
		time.Sleep(placement.DefaultTimeout)
		assert.Equal(t, "hung", r.state("p-1").Owner)
		time.Sleep(90 * time.Second)
		assert.Equal(t, "me", r.state("p-1").Owner)
	})
}

func TestAWorkerThatItsRecordDoesNotNameIsReleased(t *testing.T) {
	cases := map[string]func(r *rig){
		"record ended":           func(r *rig) { r.record("p-1", "n1", 1, placement.Released, "me") },
		"record on another node": func(r *rig) { r.onNode("p-1", "n2", 2); r.record("p-1", "n2", 2, placement.Ready, "me") },
		"record at a later try":  func(r *rig) { r.record("p-1", "n1", 2, placement.Assigned, "me") },
	}
	for name, given := range cases {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				r.onNode("p-1", "n1", 1)
				r.serve("p-2", "n1", 1)
				given(r)
				r.lead()
				time.Sleep(time.Minute)
				held := r.nodes.Agents["n1"].Held()
				require.Len(t, held, 1)
				assert.Equal(t, "p-2", held[0].ID, "what is named stays")
			})
		})
	}
}

// etcd has lost the record; the engine serves. It is recorded again, not killed.
func TestAServingWorkerWithoutARecordIsRecordedAgain(t *testing.T) {
	bubble(t, func(r *rig) {
		rec := r.serve("p-1", "n1", 3)
		r.lead()
		time.Sleep(time.Minute)
		rec = r.state(rec.ID)
		require.NoError(t, r.mem.Delete(r.ctx, rec, store.NoFence))
		time.Sleep(time.Minute)
		again := r.state("p-1")
		assert.Equal(t, placement.Ready, again.State)
		assert.Equal(t, "n1", again.Node)
		assert.Equal(t, 3, again.Attempt)
		assert.Equal(t, "http://127.0.0.1:8000", again.Endpoint)
		_, err := r.mem.ByRequest(r.ctx, "req-p-1")
		require.NoError(t, err, "with its request id")
		assert.Len(t, r.nodes.Agents["n1"].Held(), 1)
	})
}

// The pass that found the worker is over long before it has drained.
func TestAReleaseOutlivesThePassThatAskedForIt(t *testing.T) {
	bubble(t, func(r *rig) {
		r.nodes.Drain = 10 * time.Second
		r.onNode("p-1", "n1", 1)
		r.record("p-1", "n1", 1, placement.Released, "me")
		r.lead()
		time.Sleep(11 * time.Second)
		assert.Empty(t, r.nodes.Agents["n1"].Held())
	})
}

func TestNothingIsReleasedWhileEtcdIsAway(t *testing.T) {
	bubble(t, func(r *rig) {
		rec := r.serve("p-1", "n1", 1)
		r.fx.know([]store.Record{}) // we remember nothing, and cannot ask
		r.mem.Fail(errors.New("etcd is away"))
		r.lead()
		time.Sleep(10 * time.Minute)
		assert.Len(t, r.nodes.Agents["n1"].Held(), 1)
		r.mem.Fail(nil)
		r.fx.know(nil)
		time.Sleep(time.Minute)
		assert.Equal(t, rec.State, r.state("p-1").State)
		assert.Len(t, r.nodes.Agents["n1"].Held(), 1)
	})
}

func TestAReadyPlacementWhoseEngineDiedFailsWithTheAgentsReason(t *testing.T) {
	bubble(t, func(r *rig) {
		r.serve("p-1", "n1", 1)
		r.lead()
		time.Sleep(time.Minute)
		r.nodes.Agents["n1"].Kill("p-1")
		time.Sleep(time.Minute)
		rec := r.state("p-1")
		assert.Equal(t, placement.Failed, rec.State)
		assert.Equal(t, placement.CodeWorkerLost, rec.Code)
		assert.Equal(t, "engine died: signal 9", rec.Reason)
	})
}

// People look at `warmctl ps` when a model does not answer: it must not say ready then.
func TestAnEngineThatDiedIsKnownWithTheNodesNextWord(t *testing.T) {
	bubble(t, func(r *rig) {
		r.serve("p-1", "n1", 1)
		r.lead()
		time.Sleep(time.Minute)
		r.nodes.Agents["n1"].Kill("p-1")
		time.Sleep(2 * time.Second)
		assert.Equal(t, placement.Failed, r.state("p-1").State)
	}, func(c *Config) { c.Every, c.Reconcile = time.Second, 10*time.Minute })
}

func TestAClaimThatArrivesAfterItsPlacementWasTriedElsewhereIsReleasedWithTheNodesNextWord(t *testing.T) {
	bubble(t, func(r *rig) {
		r.record("p-1", "n2", 2, placement.Released, "me")
		r.lead()
		time.Sleep(time.Minute)
		r.onNode("p-1", "n1", 1)
		time.Sleep(2 * time.Second)
		assert.Empty(t, r.nodes.Agents["n1"].Held())
	}, func(c *Config) { c.Every, c.Reconcile = time.Second, 10*time.Minute })
}

func TestAReadyPlacementReleasedOnItsNodeIsReleased(t *testing.T) {
	bubble(t, func(r *rig) {
		r.serve("p-1", "n1", 1)
		_, err := r.nodes.Agents["n1"].Release("p-1")
		require.NoError(t, err)
		r.lead()
		time.Sleep(time.Minute)
		assert.Equal(t, placement.Released, r.state("p-1").State)
	})
}

func TestANodeThatForgotIsBelievedTheSecondTime(t *testing.T) {
	bubble(t, func(r *rig) {
		r.serve("p-1", "n1", 1)
		r.lead()
		time.Sleep(time.Minute)
		r.nodes.Agents["n1"].Forget()
		time.Sleep(10 * time.Second)
		rec := r.state("p-1")
		assert.Equal(t, placement.Failed, rec.State)
		assert.Contains(t, rec.Reason, "does not know")
	})
}

func TestAPlacementOnASilentNodeFailsAfterTheBoundAndNotBefore(t *testing.T) {
	bubble(t, func(r *rig) {
		r.serve("p-1", "n1", 1)
		r.serve("p-2", "n2", 1)
		r.lead()
		time.Sleep(time.Minute)
		r.nodes.Mark("n1", "failed")
		time.Sleep(9 * time.Minute)
		assert.Equal(t, placement.Ready, r.state("p-1").State)
		time.Sleep(2 * time.Minute)
		rec := r.state("p-1")
		assert.Equal(t, placement.Failed, rec.State)
		assert.Contains(t, rec.Reason, "node n1 has not been heard of for 10m")
		assert.Equal(t, placement.Ready, r.state("p-2").State)
	})
}

// A partition that heals in time costs nothing: the clock starts anew.
func TestANodeThatIsBackInTimeLosesNothing(t *testing.T) {
	bubble(t, func(r *rig) {
		r.serve("p-1", "n1", 1)
		r.lead()
		for range 5 {
			r.nodes.Mark("n1", "failed")
			time.Sleep(9 * time.Minute)
			r.nodes.Mark("n1", "alive")
			time.Sleep(time.Minute)
		}
		assert.Equal(t, placement.Ready, r.state("p-1").State)
		assert.Len(t, r.nodes.Agents["n1"].Held(), 1)
	})
}

func TestEndedRecordsAreKeptForADayThenDeletedWithTheirRequestID(t *testing.T) {
	bubble(t, func(r *rig) {
		for i := range 150 {
			r.record(fmt.Sprintf("p-%03d", i), "n1", 1, placement.Released, "me")
		}
		r.serve("p-live", "n1", 1)
		r.lead()
		time.Sleep(23 * time.Hour)
		all, err := r.mem.List(r.ctx)
		require.NoError(t, err)
		require.Len(t, all, 151)
		time.Sleep(100 * time.Minute) // no more than 100 are deleted in one pass
		all, err = r.mem.List(r.ctx)
		require.NoError(t, err)
		require.Len(t, all, 1)
		assert.Equal(t, "p-live", all[0].ID)
		_, err = r.mem.ByRequest(r.ctx, "req-p-000")
		assert.ErrorIs(t, err, store.ErrNotFound)
	}, func(c *Config) { c.Every, c.Reconcile = 30*time.Minute, time.Hour })
}

func TestOneNodeThatDoesNotAnswerDoesNotHoldTheOthersUp(t *testing.T) {
	bubble(t, func(r *rig) {
		r.nodes.Fault = func(node, _, _ string) agenttest.Fault {
			if node == "n1" {
				return agenttest.CutBefore
			}
			return agenttest.Fine
		}
		r.onNode("p-1", "n2", 1)
		r.record("p-1", "n2", 1, placement.Released, "me")
		r.lead()
		time.Sleep(time.Minute)
		assert.Empty(t, r.nodes.Agents["n2"].Held())
	})
}
