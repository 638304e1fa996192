package placement

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestAModelThatSleepsIsFoundByWhoAsksInTheSameWords(t *testing.T) {
	r := Request{ID: "req-1", Model: "/m/opt", Args: []string{"--enable-sleep-mode"}, TimeoutSeconds: 5}
	node := func(name string, change func(*NodeView)) NodeView {
		n := NodeView{Capacity: Capacity{Node: name, Addr: name + ":1", Devices: []Device{
			{ID: "gpu-0", Slots: 1, Busy: 1, Sleeping: map[string]string{"p-1": "other"}},
			{ID: "gpu-1", Slots: 1, Busy: 1, Sleeping: map[string]string{"p-3": r.Key(), "p-2": r.Key()}},
		}}, Alive: true}
		if change != nil {
			change(&n)
		}
		return n
	}
	again := r
	again.ID, again.TimeoutSeconds, again.Name, again.Start = "req-2", 0, "opt", StartAuto
	c, ok := Asleep(NewSnapshot([]NodeView{node("b", nil), node("a", nil)}, nil), again)
	require.True(t, ok)
	assert.Equal(t, Candidate{Node: "a", Addr: "a:1", Device: "gpu-1", Tier: TierSleeping, Placement: "p-2", Why: "placement p-2 of the same request sleeps here"}, c)
	for name, change := range map[string]func(*NodeView){
		"drains":       func(n *NodeView) { n.Draining = true },
		"is not alive": func(n *NodeView) { n.Alive = false },
		"has a fault":  func(n *NodeView) { n.Devices[1].Problem = "Xid 79" },
		"is awake":     func(n *NodeView) { n.Devices[1].Sleeping = nil },
	} {
		_, ok := Asleep(NewSnapshot([]NodeView{node("a", change)}, nil), r)
		assert.False(t, ok, "a node that %s", name)
	}
	r.Start = StartCold
	_, ok = Asleep(NewSnapshot([]NodeView{node("a", nil)}, nil), r)
	assert.False(t, ok, "a cold start is never a wake")
}

func TestTwoRequestsHaveOneKeyIfTheyAreTheSame(t *testing.T) {
	draw := func(t *rapid.T, label string) Request {
		r := Request{
			ID: rapid.SampledFrom([]string{"", "x"}).Draw(t, label+" id"), Model: rapid.SampledFrom([]string{"/m/a", "/m/b"}).Draw(t, label+" model"),
			Name: rapid.SampledFrom([]string{"", "a"}).Draw(t, label+" name"), Start: rapid.SampledFrom([]Start{"", StartAuto, StartWarm}).Draw(t, label+" start"),
			Args: rapid.SliceOfN(rapid.SampledFrom([]string{"-a", "-b"}), 0, 2).Draw(t, label+" args"), WaitCapacity: rapid.Bool().Draw(t, label+" wait"),
			MemoryBytes: rapid.Int64Range(0, 1).Draw(t, label+" memory"),
		}
		if rapid.Bool().Draw(t, label+" env") {
			r.Env = map[string]string{"A": rapid.SampledFrom([]string{"1", "2"}).Draw(t, label+" value")}
		}
		return r
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw(t, "a"), draw(t, "b")
		if same := a.Normalize().Same(b.Normalize()); same != (a.Key() == b.Key()) {
			t.Fatalf("same %v, keys %s and %s", same, a.Key(), b.Key())
		}
	})
}
