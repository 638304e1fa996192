package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/agent/gossip/gossiptest"
	"warmd/placement"
)

// One processor: the race detector of Go 1.26 has one context for all timers of a bubble,
// and breaks when two processors run some at once (golang/go#78156), in one of some
// twenty runs of this package.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}

// fleet is some members on one network in memory, inside a synctest bubble: time
// is fake, and the bubble fails the test when a goroutine is left behind.
type fleet struct {
	t       *testing.T
	net     *gossiptest.Network
	members map[string]*Member
	stops   map[string]func()
	keys    [][]byte
	log     *slog.Logger
}

func inBubble(t *testing.T, test func(f *fleet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t, net: gossiptest.NewNetwork(1), members: map[string]*Member{}, stops: map[string]func(){}}
		defer func() {
			for name := range f.stops {
				f.crash(name)
			}
			// memberlist waits for none of its goroutines: their last deadlines must pass.
			time.Sleep(2 * time.Minute)
		}()
		test(f)
	})
}

// start runs a member that joins by node-0, with one 2-slot device unless it is a
// coordinator alone.
func (f *fleet) start(name string, coordinator bool) *Member {
	f.t.Helper()
	tr := f.net.Transport(name)
	f.net.Plug(name)
	cfg := Config{Name: name, Transport: tr, Coordinator: coordinator, Keys: f.keys, Log: f.log}
	if name != "node-0" {
		cfg.Join = []string{f.net.Addr("node-0")}
	}
	m, err := New(cfg)
	require.NoError(f.t, err)
	if !coordinator {
		m.SetCapacity(capacityOf(name, 1))
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	f.members[name] = m
	f.stops[name] = func() {
		cancel()
		assert.NoError(f.t, <-done)
		delete(f.members, name)
		delete(f.stops, name)
	}
	return m
}

func (f *fleet) startNodes(n int) []string {
	names := make([]string, n)
	for i := range n {
		names[i] = fmt.Sprintf("node-%d", i)
		f.start(names[i], false)
	}
	return names
}

// crash cuts a member off first: nobody hears its farewell.
func (f *fleet) crash(name string) {
	f.net.Unplug(name)
	f.stops[name]()
}

// await waits until a view satisfies ok, and returns how long that took.
func (f *fleet) await(m *Member, within time.Duration, what string, ok func(placement.Fleet) bool) time.Duration {
	f.t.Helper()
	begin, limit := time.Now(), time.After(within)
	for {
		changed := m.Changed()
		if ok(m.Members()) {
			return time.Since(begin)
		}
		select {
		case <-changed:
		case <-limit:
			f.t.Fatalf("%s does not see within %s: %s; it sees %s", m.cfg.Name, within, what, describe(m.Members()))
		}
	}
}

func (f *fleet) awaitAll(within time.Duration, what string, ok func(placement.Fleet) bool) {
	f.t.Helper()
	begin := time.Now()
	for _, m := range f.members {
		f.await(m, within-time.Since(begin), what, ok)
	}
}

func describe(f placement.Fleet) (out []string) {
	for _, n := range f.Nodes {
		slots, free, _, _, _ := n.Totals()
		out = append(out, fmt.Sprintf("%s:%s g%d %d/%d", n.Node, n.Status, n.Generation, free, slots))
	}
	return out
}

func alive(n int) func(placement.Fleet) bool {
	return func(f placement.Fleet) bool {
		count := 0
		for _, v := range f.Nodes {
			if v.Alive && (len(v.Devices) > 0 || v.Coordinator) {
				count++
			}
		}
		return count == n
	}
}

func node(f placement.Fleet, name string) placement.NodeView {
	i := slices.IndexFunc(f.Nodes, func(v placement.NodeView) bool { return v.Node == name })
	if i < 0 {
		return placement.NodeView{}
	}
	return f.Nodes[i]
}

func status(name, want string) func(placement.Fleet) bool {
	return func(f placement.Fleet) bool { return node(f, name).Status == want }
}

func generation(name string, want uint64) func(placement.Fleet) bool {
	return func(f placement.Fleet) bool { return node(f, name).Generation == want }
}

// capacityOf is a two-slot node in its life that began now.
func capacityOf(name string, generation uint64) placement.Capacity {
	return placement.Capacity{
		Node: name, Epoch: time.Now().UnixNano(), Generation: generation, Addr: "10.1.1.1:7800", Version: "test",
		Devices: []placement.Device{{
			ID: "GPU-" + name, Kind: "cuda", Name: "H200", TotalBytes: 140 << 30, FreeBytes: 130 << 30,
			Slots: 2, Free: 2, Warm: map[string]int{"vllm": 1},
		}},
		Runtimes: []placement.Runtime{{Name: "vllm", Kind: "vllm", Device: "cuda", Zygote: "up", Version: "0.32.0"}},
	}
}

// claimed is c one generation later with one more slot busy.
func claimed(c placement.Capacity) placement.Capacity {
	c = clone(c)
	c.Generation++
	c.Devices[0].Free--
	c.Devices[0].Busy++
	return c
}

func TestFleetFindsEachOtherAndSeesUpdates(t *testing.T) {
	for _, n := range []int{8, 32} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inBubble(t, func(f *fleet) {
				names := f.startNodes(n)
				f.awaitAll(time.Minute, "all nodes", alive(n))
				last := names[n-1]
				m := f.members[last]
				m.SetCapacity(claimed(m.latest()))
				f.awaitAll(10*time.Second, "the update of "+last, func(v placement.Fleet) bool {
					d := node(v, last)
					return d.Generation == 2 && d.Devices[0].Free == 1 && d.Devices[0].Busy == 1
				})
			})
		})
	}
}

func TestCrashIsNoticedAndTheNextLifeReplacesTheLast(t *testing.T) {
	for _, n := range []int{8, 32} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inBubble(t, func(f *fleet) {
				f.startNodes(n)
				f.awaitAll(time.Minute, "all nodes", alive(n))
				f.crash("node-3")
				f.awaitAll(30*time.Second, "the crash", status("node-3", StatusFailed))

				m := f.start("node-3", false)
				first := m.latest()
				f.awaitAll(time.Minute, "the new life", func(v placement.Fleet) bool {
					d := node(v, "node-3")
					return d.Alive && d.Epoch == first.Epoch && d.Generation == 1
				})
				f.await(m, time.Minute, "all nodes", alive(n))
			})
		})
	}
}

// A restart within seconds is never seen as a failure: only the epoch tells.
func TestQuickRestartIsSeenByItsEpoch(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(8)
		f.awaitAll(time.Minute, "all nodes", alive(8))
		m := f.members["node-5"]
		c := claimed(claimed(m.latest())) // generation 3
		m.SetCapacity(c)
		f.awaitAll(10*time.Second, "generation 3", generation("node-5", 3))
		f.crash("node-5")
		f.start("node-5", false) // generation 1 of a later epoch
		f.awaitAll(30*time.Second, "the new epoch", func(v placement.Fleet) bool {
			d := node(v, "node-5")
			return d.Epoch > c.Epoch && d.Generation == 1 && d.Alive
		})
	})
}

func TestFarewellIsNoFailure(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(8)
		f.awaitAll(time.Minute, "all nodes", alive(8))
		begin := time.Now()
		f.stops["node-2"]()
		assert.Less(t, time.Since(begin), leaveTimeout, "the farewell is bounded")
		f.awaitAll(5*time.Second, "the farewell", status("node-2", StatusLeft))
		time.Sleep(keepLeft + time.Minute)
		for _, m := range f.members {
			assert.Empty(t, node(m.Members(), "node-2").Node, "a node that left is forgotten")
		}
	})
}

func TestPartitionIsNoticedAndHeals(t *testing.T) {
	inBubble(t, func(f *fleet) {
		names := f.startNodes(8)
		f.awaitAll(time.Minute, "all nodes", alive(8))
		left, right := names[:3], names[3:]
		f.net.Partition(left, right)
		f.awaitAll(time.Minute, "the other side is gone", func(v placement.Fleet) bool {
			return alive(3)(v) || alive(5)(v)
		})
		// Longer than memberlist itself tries: from here on only healing helps.
		time.Sleep(5 * time.Minute)
		c := claimed(f.members["node-6"].latest())
		f.members["node-6"].SetCapacity(c)
		f.net.Heal()
		f.awaitAll(2*time.Minute, "all nodes again", alive(8))
		f.awaitAll(time.Minute, "what changed meanwhile", generation("node-6", c.Generation))
	})
}

func TestOneWayLossDoesNotKillAHealthyNode(t *testing.T) {
	inBubble(t, func(f *fleet) {
		names := f.startNodes(8)
		f.awaitAll(time.Minute, "all nodes", alive(8))
		f.net.Cut([]string{"node-1"}, []string{"node-2"})
		time.Sleep(2 * time.Minute)
		for _, name := range names {
			assert.True(t, node(f.members[name].Members(), "node-1").Alive, "%s must see node-1", name)
		}
	})
}

func TestLossyFleetStillConverges(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.net.SetLoss(0.2)
		f.net.SetDelay(50 * time.Millisecond)
		f.startNodes(8)
		f.awaitAll(3*time.Minute, "all nodes", alive(8))
		m := f.members["node-4"]
		m.SetCapacity(claimed(m.latest()))
		f.awaitAll(3*time.Minute, "the update", generation("node-4", 2))
	})
}

func TestEncryptedFleetKeepsStrangersOut(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.keys = [][]byte{slices.Repeat([]byte{1}, 32)}
		f.startNodes(3)
		f.awaitAll(time.Minute, "all nodes", alive(3))
		f.keys = [][]byte{slices.Repeat([]byte{2}, 32)}
		stranger := f.start("stranger", false)
		time.Sleep(2 * time.Minute)
		assert.True(t, alive(1)(stranger.Members()))
		for name, m := range f.members {
			assert.Equal(t, name == "stranger", node(m.Members(), "stranger").Node != "")
		}
	})
}
