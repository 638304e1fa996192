package placer

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/coordinator/internal/store"
	"warmd/placement"
)

func waiting(id string, seconds float64) placement.Request {
	r := opt(id)
	r.WaitCapacity, r.TimeoutSeconds = true, seconds
	return r
}

// full is a coordinator, and who holds the only slot.
func full(r *rig) (*coordinator, outcome) {
	c := r.coordinator("c1")
	c.fx.Live()
	holder := c.place(r.t.Context(), opt("holder"))
	require.NoError(r.t, holder.err)
	return c, holder
}

func TestWaitersGetSlotsInTheOrderTheyCame(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c, holder := full(r)
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				o := c.place(r.t.Context(), waiting(fmt.Sprintf("req-%d", i), 60))
				assert.NoError(t, o.err)
				assert.Equal(t, "queued", o.events[0])
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				time.Sleep(time.Second)
				_, _ = r.agents[0].Release(o.ID)
			})
			synctest.Wait()
		}
		queued, _ := c.Counts()
		assert.Equal(t, 5, queued)
		_, err := r.agents[0].Release(holder.ID)
		require.NoError(t, err)
		wg.Wait()
		assert.Equal(t, []int{0, 1, 2, 3, 4}, order)
	})
}

// Two coordinators may choose one id in one millisecond: who notices takes another, and
// keeps the slot.
func TestAWaiterWhoseIDIsTakenKeepsItsTurn(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c, holder := full(r)
		var first, second outcome
		var wg sync.WaitGroup
		wg.Go(func() { first = c.place(r.t.Context(), waiting("req-1", 60)) })
		synctest.Wait()
		wg.Go(func() { second = c.place(r.t.Context(), waiting("req-2", 60)) })
		synctest.Wait()
		c.mu.Lock()
		taken := c.queue[0].id
		c.mu.Unlock()
		_, err := r.mem.Create(r.t.Context(), store.Record{Placement: placement.Placement{ID: taken, State: placement.Released}}, store.NoFence)
		require.NoError(t, err)
		_, err = r.agents[0].Release(holder.ID)
		require.NoError(t, err)
		synctest.Wait()
		served := r.agents[0].Held()[0].ID
		_, err = r.agents[0].Release(served)
		require.NoError(t, err)
		wg.Wait()
		require.NoError(t, first.err)
		require.NoError(t, second.err)
		assert.Equal(t, served, first.ID)
		assert.NotEqual(t, taken, first.ID)
		assert.Equal(t, []string{"queued", "assigned", "accepted", "ready"}, first.events)
	})
}

// A slot is free and the one who waits has not been woken yet: a newcomer must not take
// it, even one that would not wait.
func TestANewcomerDoesNotOvertakeWhoWaits(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c := r.coordinator("c1")
		holder := c.place(r.t.Context(), opt("holder"))
		require.NoError(t, holder.err)
		var first, second outcome
		var wg sync.WaitGroup
		wg.Go(func() { first = c.place(r.t.Context(), waiting("req-1", 60)) })
		synctest.Wait()
		c.fx.Deaf = true
		_, _ = r.agents[0].Release(holder.ID)
		c.fx.Refresh()
		wg.Go(func() { second = c.place(r.t.Context(), opt("req-2")) })
		wg.Wait()
		require.NoError(t, first.err)
		assert.Zero(t, first.took)
		assert.Equal(t, placement.CodeNoCapacity, code(second.err))
	})
}

func TestAWaiterIsToldWhyWhenItsTimeIsOver(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c := r.coordinator("c1")
		require.NoError(t, c.place(r.t.Context(), opt("holder")).err)
		o := c.place(r.t.Context(), waiting("req-1", 9))
		assert.Equal(t, 9*time.Second, o.took)
		assert.Equal(t, placement.CodeNoCapacity, code(o.err))
		assert.Contains(t, o.err.Error(), "within 9s")
		synctest.Wait()
		queued, flights := c.Counts()
		assert.Zero(t, queued)
		assert.Zero(t, flights)
		all, _ := r.mem.List(context.Background())
		assert.Len(t, all, 1, "it left no record")
	})
}

func TestAWaiterThatNobodyWaitsForLeavesTheQueue(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c := r.coordinator("c1")
		holder := c.place(r.t.Context(), opt("holder"))
		ctx, hangUp := context.WithCancel(r.t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.place(ctx, waiting("req-1", 60)) })
		synctest.Wait()
		hangUp()
		wg.Wait()
		synctest.Wait()
		queued, flights := c.Counts()
		assert.Zero(t, queued)
		assert.Zero(t, flights)
		_, _ = r.agents[0].Release(holder.ID)
		synctest.Wait()
		assert.Empty(t, r.agents[0].Held())
	})
}

func TestTheQueueIsBounded(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c := r.coordinator("c1", func(cfg *Config) { cfg.MaxQueue = 3 })
		require.NoError(t, c.place(r.t.Context(), opt("holder")).err)
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() { _ = c.place(r.t.Context(), waiting(fmt.Sprintf("req-%d", i), 5)) })
		}
		synctest.Wait()
		o := c.place(r.t.Context(), waiting("req-9", 5))
		assert.Contains(t, o.err.Error(), "3 requests wait")
		assert.Zero(t, o.took)
		wg.Wait()
	})
}

func TestWaitingIsNotForWhatTimeCannotHelp(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c := r.coordinator("c1")
		req := waiting("req-1", 60)
		req.Runtime = "sglang"
		o := c.place(r.t.Context(), req)
		assert.Equal(t, placement.CodeUnknownRuntime, code(o.err))
		assert.Zero(t, o.took)
	})
}

// One slot becomes free and two coordinators have heard of it: the one that is refused
// keeps waiting, however often that happens.
func TestAWaiterThatLosesARaceGoesOnWaiting(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c1, c2 := r.coordinator("c1"), r.coordinator("c2")
		r.agents[0].OnChange = func(c placement.Capacity) { c1.fx.Apply(c); c2.fx.Apply(c) }
		holder := c1.place(r.t.Context(), opt("holder"))
		require.NoError(t, holder.err)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				o := []*coordinator{c1, c2}[i%2].place(r.t.Context(), waiting(fmt.Sprintf("req-%d", i), 300))
				assert.NoError(t, o.err)
				time.Sleep(time.Second)
				_, _ = r.agents[0].Release(o.ID)
			})
		}
		time.Sleep(time.Second)
		_, _ = r.agents[0].Release(holder.ID)
		wg.Wait()
		assert.Len(t, r.history.All(), 9)
	})
}

func TestADrainedNodeTakesWaitersWhenItIsBack(t *testing.T) {
	bubble(t, 1, func(r *rig) {
		c := r.coordinator("c1")
		c.fx.Live()
		r.agents[0].SetDrain(true)
		var o outcome
		var wg sync.WaitGroup
		wg.Go(func() { o = c.place(r.t.Context(), waiting("req-1", 60)) })
		time.Sleep(5 * time.Second)
		r.agents[0].SetDrain(false)
		wg.Wait()
		require.NoError(t, o.err)
		assert.Equal(t, 5*time.Second, o.took)
	})
}

// The view is old when it counts: a claim of ours counts until the node's own word
// covers it, and not a moment longer.
func TestOverlayCountsAClaimUntilTheViewShowsIt(t *testing.T) {
	slot := placement.SlotKey{Node: "n1", Device: "cpu-0"}
	view := func(epoch int64, gen uint64, ids ...string) []placement.NodeView {
		return []placement.NodeView{{Capacity: placement.Capacity{Node: "n0"}}, {Capacity: placement.Capacity{Node: "n1", Epoch: epoch, Generation: gen,
			Devices: []placement.Device{{ID: "cpu-0", Slots: 2, Placements: ids}}}}}
	}
	o, s := overlay{}, &start{id: "p-1"}
	o.add(s, slot)
	assert.Equal(t, 1, o.counts(view(1, 99))[slot], "newer, but it does not name the claim")
	o.answered(s, &placement.Capacity{Epoch: 1, Generation: 100})
	assert.Equal(t, 1, o.counts(view(1, 99))[slot], "older than the answer")
	assert.Zero(t, o.counts(view(1, 100))[slot])
	assert.Empty(t, o)
	o.add(s, slot)
	assert.Zero(t, o.counts(view(1, 5, "p-1"))[slot], "the node names it")
	o.add(s, slot)
	o.answered(s, &placement.Capacity{Epoch: 1, Generation: 100})
	assert.Zero(t, o.counts(view(2, 1))[slot], "another life of the node")
	o.add(s, slot)
	o.answered(s, nil)
	assert.Empty(t, o)
}

func TestIDsAreShortSortableAndOfOneAlphabet(t *testing.T) {
	last := ""
	for i := range 2000 {
		id := newID(time.UnixMilli(1_790_000_000_000 + int64(i)))
		require.Regexp(t, `^p-[0-9a-hjkmnp-tv-z]{10}$`, id)
		require.Less(t, last[:max(0, len(last)-2)], id[:len(id)-2]+"~")
		require.True(t, last == "" || last[:10] < id[:10], "%s then %s", last, id)
		last = id
	}
}

func TestLinesOfAFlightAreBoundedButNeverTheOnesThatCount(t *testing.T) {
	f := newFlight(opt(""), time.Now())
	for range 5 * maxLines {
		f.say(placement.Progress{Event: placement.EventPhase, Phase: &placement.Phase{Name: "x"}}, nil)
	}
	f.say(placement.Progress{Event: placement.EventReady}, &placement.Placement{ID: "p-1"})
	n := 0
	var last placement.Progress
	require.NoError(t, f.Follow(t.Context(), func(l placement.Progress) bool { n++; last = l; return true }))
	assert.Equal(t, maxLines+1, n)
	assert.Equal(t, placement.EventReady, last.Event)
}
