package placer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
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

// takeOver does what the elected sweeper does with a dead coordinator's records.
func (r *rig) takeOver(from string, by *coordinator) {
	all, err := r.mem.List(context.Background())
	require.NoError(r.t, err)
	for _, rec := range all {
		if rec.State == placement.Assigned && rec.Owner == from {
			rec.Owner = by.cfg.Instance
			if rec, err = r.mem.Update(context.Background(), rec, store.NoFence); err == nil {
				by.Resume(rec)
			}
		}
	}
}

// A coordinator is cut down at each step of a placement in turn. Another one goes on
// from the record, and a caller that repeats its request there gets one placement,
// which runs once.
func TestACoordinatorKilledAtAnyStepLeavesOnePlacement(t *testing.T) {
	var steps []string
	bubble(t, 2, func(r *rig) { // which steps are there?
		c := r.coordinator("c1")
		c.fx.before = func(op string) { steps = append(steps, op) }
		require.NoError(t, c.place(r.t.Context(), opt("req-1")).err)
		synctest.Wait()
	})
	require.Equal(t, []string{"create", "created", "claim", "line accepted", "line ready", "update ready"}, steps)

	for at, name := range steps {
		t.Run("before "+name, func(t *testing.T) {
			bubble(t, 2, func(r *rig) {
				for _, a := range r.agents {
					a.Start = after(2 * time.Second)
				}
				c1, c2 := r.coordinator("c1"), r.coordinator("c2")
				n := 0
				c1.fx.before = func(string) {
					if n == at {
						c1.kill()
					}
					n++
				}
				_ = c1.place(r.t.Context(), opt("req-1"))
				<-c1.done
				var wg sync.WaitGroup
				var again outcome
				wg.Go(func() { again = c2.place(r.t.Context(), opt("req-1")) })
				synctest.Wait()
				r.takeOver("c1", c2)
				wg.Wait()
				require.NoError(t, again.err)
				rec := r.stored(again.ID)
				assert.Equal(t, placement.Ready, rec.State)
				all, err := r.mem.List(context.Background())
				require.NoError(t, err)
				assert.Len(t, all, 1)
				time.Sleep(time.Minute)
				assert.Len(t, r.history.All(), 1, "it ran once, on one node")
				held := 0
				for _, a := range r.agents {
					for _, p := range a.Held() {
						held++
						assert.Equal(t, rec.Node, p.Node)
						assert.Equal(t, rec.Attempt, p.Attempt)
					}
				}
				assert.Equal(t, 1, held)
			})
		})
	}
}

// The old owner is alive after all: it was only slow. It must not go on to another
// node once its record has been taken over.
func TestAnOwnerWhoseRecordWasTakenOverOnlyWatches(t *testing.T) {
	bubble(t, 2, func(r *rig) {
		slow := make(chan struct{})
		r.agents[0].Start = func(ctx context.Context, _ string, _ agentapi.Claim) error {
			select {
			case <-slow:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		c1, c2 := r.coordinator("c1"), r.coordinator("c2")
		broken := false
		var mu sync.Mutex
		c1.fx.Fault = func(node, _, _ string) agenttest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if broken && node == "n1" {
				return agenttest.CutBefore
			}
			return agenttest.Fine
		}
		f, err := c1.Place(opt("req-1"))
		require.NoError(t, err)
		synctest.Wait()
		r.takeOver("c1", c2)
		mu.Lock()
		broken = true
		mu.Unlock()
		c1.fx.Mark("n1", "failed") // c1 alone believes that n1 is gone, and would move on
		time.Sleep(5 * time.Second)
		close(slow)
		var last placement.Progress
		require.NoError(t, f.Follow(r.t.Context(), func(l placement.Progress) bool { last = l; return true }))
		require.Equal(t, placement.EventReady, last.Event)
		assert.Equal(t, "n1", last.Placement.Node)
		assert.Equal(t, 1, last.Placement.Attempt)
		assert.Empty(t, r.agents[1].Held())
	})
}

func TestReadyOfAnAttemptThatTheRecordHasLeftIsReleased(t *testing.T) {
	bubble(t, 2, func(r *rig) {
		r.agents[0].Start = after(5 * time.Second)
		c1 := r.coordinator("c1")
		f, err := c1.Place(opt("req-1"))
		require.NoError(t, err)
		synctest.Wait()
		rec := r.stored(f.placementID())
		rec.Attempt, rec.Node, rec.Owner = 2, "n2", "c2"
		_, err = r.mem.Update(context.Background(), rec, store.NoFence)
		require.NoError(t, err)
		time.Sleep(10 * time.Second)
		assert.Empty(t, r.agents[0].Held())
		assert.Equal(t, "n2", r.stored(rec.ID).Node)
	})
}

func TestResumeTouchesOnlyItsOwnUnfinishedRecords(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c := r.coordinator("c1")
		foreign := store.Record{Placement: placement.Placement{ID: "p-1", State: placement.Assigned}, Owner: "c2"}
		assert.False(t, c.Resume(foreign))
		ended := store.Record{Placement: placement.Placement{ID: "p-1", State: placement.Ready}, Owner: "c1"}
		assert.False(t, c.Resume(ended))
		r.agents[0].Start = after(time.Second)
		f, err := c.Place(opt("req-1"))
		require.NoError(t, err)
		synctest.Wait()
		assert.False(t, c.Resume(r.stored(f.placementID())), "it is under way")
	})
}

// Random callers, faults and deaths over three coordinators. Whatever happens: no slot
// has two owners, no attempt two nodes, one request id one placement, and once the
// weather is fine every record ends and names where its worker is.
func TestRandomFaultsNeverPlaceTwice(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { chaos(t, uint64(seed)) })
	}
}

func chaos(t *testing.T, seed uint64) {
	bubble(t, 4, func(r *rig) {
		var mu sync.Mutex
		rng := rand.New(rand.NewPCG(seed, 1))
		roll := func(n int) int { mu.Lock(); defer mu.Unlock(); return rng.IntN(n) }
		for _, a := range r.agents {
			a.Start = func(ctx context.Context, id string, c agentapi.Claim) error {
				if err := after(time.Duration(roll(4000))*time.Millisecond)(ctx, id, c); err != nil {
					return err
				}
				if roll(10) == 0 {
					return fmt.Errorf("engine died")
				}
				return nil
			}
		}
		stormy := true
		fault := func(string, string, string) agenttest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if !stormy || rng.IntN(4) > 0 {
				return agenttest.Fine
			}
			return agenttest.Fault(rng.IntN(5))
		}
		born := 0
		live := map[int]*coordinator{}
		birth := func(i int) {
			c := r.coordinator(fmt.Sprintf("c%d", born))
			born++
			c.fx.Fault = fault
			live[i] = c
		}
		for i := range 3 {
			birth(i)
		}
		ids := map[string]string{} // request id -> placement id
		var wg sync.WaitGroup
		for range 60 {
			time.Sleep(time.Duration(roll(800)) * time.Millisecond)
			switch roll(12) {
			case 0: // a coordinator dies; a new one takes its records over
				i := roll(3)
				dead := live[i]
				dead.kill()
				<-dead.done
				birth(i)
				time.Sleep(time.Duration(roll(3000)) * time.Millisecond)
				r.takeOver(dead.cfg.Instance, live[i])
			case 1: // etcd goes away for a while
				r.mem.Fail(placement.Errorf(placement.CodeUnavailable, "etcd is away"))
				time.Sleep(time.Duration(roll(3000)) * time.Millisecond)
				r.mem.Fail(nil)
			case 2:
				if held := r.agents[roll(4)].Held(); len(held) > 0 {
					id := held[0].ID
					rec, err := r.mem.Get(context.Background(), id)
					if err == nil && !rec.State.Terminal() {
						rec.State = placement.Released
						if _, err := r.mem.Update(context.Background(), rec, store.NoFence); err == nil {
							for _, a := range r.agents {
								_, _ = a.Release(id)
							}
						}
					}
				}
			default:
				c, req := live[roll(3)], opt(fmt.Sprintf("req-%d", roll(20)))
				req.TimeoutSeconds, req.WaitCapacity = 20, roll(2) == 0
				wg.Go(func() {
					o := c.place(r.t.Context(), req)
					if o.ID == "" {
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if was := ids[req.ID]; was != "" && was != o.ID {
						t.Errorf("request %s named %s, then %s", req.ID, was, o.ID)
					}
					ids[req.ID] = o.ID
				})
			}
		}
		mu.Lock()
		stormy = false
		mu.Unlock()
		for range 60 { // fine weather: cut-off records are found again by their owners
			time.Sleep(2 * time.Second)
			all, err := r.mem.List(context.Background())
			require.NoError(t, err)
			for _, rec := range all {
				for _, c := range live {
					c.Resume(rec)
				}
			}
		}
		wg.Wait()
		all, err := r.mem.List(context.Background())
		require.NoError(t, err)
		where := map[string]string{}
		for _, rec := range all {
			assert.True(t, rec.State == placement.Ready || rec.State.Terminal(), "%s is %s, owner %s", rec.ID, rec.State, rec.Owner)
			if rec.State == placement.Ready {
				where[rec.ID] = rec.Node
			}
		}
		for _, a := range r.agents {
			for _, p := range a.Held() {
				if where[p.ID] == a.Name {
					delete(where, p.ID)
				}
			}
		}
		assert.Empty(t, where, "every ready record has its worker")
	})
}
