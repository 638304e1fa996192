package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

// drawFleet makes a fleet in which everything that Choose looks at varies.
func drawFleet(t *rapid.T) ([]NodeView, map[SlotKey]int) {
	nodes := make([]NodeView, rapid.IntRange(0, 6).Draw(t, "nodes"))
	claims := map[SlotKey]int{}
	small := rapid.IntRange(0, 2)
	for i := range nodes {
		n := &nodes[i]
		n.Node = fmt.Sprintf("n%d", i)
		n.Status = rapid.SampledFrom([]string{"alive", "alive", "alive", "failed", "suspect"}).Draw(t, "status")
		n.Alive = n.Status == "alive"
		n.Draining = small.Draw(t, "draining") == 2
		n.Summary = rapid.Bool().Draw(t, "summary")
		for _, name := range []string{"a", "b"}[:rapid.IntRange(0, 2).Draw(t, "runtimes")] {
			n.Runtimes = append(n.Runtimes, Runtime{
				Name: name, Kind: rapid.SampledFrom([]string{"vllm", "vllm", "exec"}).Draw(t, "kind"),
				Device: rapid.SampledFrom([]string{"", "cpu", "cuda"}).Draw(t, "for"),
				Zygote: rapid.SampledFrom([]string{"up", "up", "down", ""}).Draw(t, "zygote"),
			})
		}
		for j := range rapid.IntRange(0, 3).Draw(t, "devices") {
			d := Device{
				ID: fmt.Sprintf("d%d", j), Kind: rapid.SampledFrom([]string{"cpu", "cuda"}).Draw(t, "device"),
				Free: small.Draw(t, "free"), Busy: small.Draw(t, "busy"), Quarantined: small.Draw(t, "quarantined"),
				FreeBytes: int64(rapid.IntRange(0, 4).Draw(t, "gib")) << 30,
			}
			d.Slots = d.Free + d.Busy + d.Quarantined
			if rapid.IntRange(0, 5).Draw(t, "broken") == 0 {
				d.Problem = "broken"
			}
			if w := min(d.Free, small.Draw(t, "warm")); w > 0 {
				d.Warm = map[string]int{rapid.SampledFrom([]string{"a", "b"}).Draw(t, "warm of"): w}
			}
			if c := small.Draw(t, "claims"); c > 0 {
				claims[SlotKey{n.Node, d.ID}] = c
			}
			if n.Summary {
				d.ID = ""
			}
			n.Devices = append(n.Devices, d)
		}
	}
	return nodes, claims
}

func drawRequest(t *rapid.T) Request {
	return Request{
		Model:   "m",
		Runtime: rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "runtime"),
		Node:    rapid.SampledFrom([]string{"", "", "", "n1"}).Draw(t, "node"),
		Start:   rapid.SampledFrom([]Start{"", StartAuto, StartWarm, StartCold}).Draw(t, "start"), MemoryBytes: int64(rapid.IntRange(0, 3).Draw(t, "wanted")) << 30,
	}
}

// reference is Choose again, as dumb as can be: the warmest tier that each node
// could give, by trying every device of every node. It knows nothing of order.
func reference(nodes []NodeView, claims map[SlotKey]int, r Request) map[string]Tier {
	out := map[string]Tier{}
	for _, n := range nodes {
		if !n.Alive || n.Draining || (r.Node != "" && r.Node != n.Node) {
			continue
		}
		onNode := 0
		for k, c := range claims {
			if k.Node == n.Node {
				onNode += c
			}
		}
		for _, rt := range n.Runtimes {
			if rt.Name != r.Runtime && (r.Runtime != "" || len(n.Runtimes) != 1) {
				continue
			}
			for _, d := range n.Devices {
				taken := claims[SlotKey{n.Node, d.ID}]
				if n.Summary { // claims fill the devices in order
					taken = min(onNode, d.Free)
				}
				if d.Problem != "" || rt.Device != "" && rt.Device != d.Kind {
					continue
				}
				if n.Summary {
					onNode -= taken
				}
				if d.Free-taken <= 0 || !n.Summary && d.FreeBytes < r.MemoryBytes {
					continue
				}
				tier := TierCold
				if r.Start != StartCold && rt.Kind != KindExec && (rt.Zygote == "up" || d.Warm[rt.Name]-taken > 0) {
					tier = TierWarm
				}
				if tier == TierCold && r.Start == StartWarm {
					continue
				}
				if out[n.Node] != TierWarm {
					out[n.Node] = tier
				}
			}
		}
	}
	return out
}

// Never colder than the reference, never a node that cannot serve, never a node
// that could and is missing; and every node that is passed over has a reason.
func TestChooseIsNeverColderThanTryingEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, claims := drawFleet(t)
		r := drawRequest(t)
		want := reference(nodes, claims, r)
		got := Choose(NewSnapshot(nodes, claims), r)
		tiers := map[string]Tier{}
		for i, c := range got.Candidates {
			tiers[c.Node] = c.Tier
			if i > 0 && c.Tier == TierWarm && got.Candidates[i-1].Tier == TierCold {
				t.Fatalf("a cold candidate stands before a warm one: %+v", got.Candidates)
			}
			if c.Why == "" || c.Runtime == "" {
				t.Fatalf("candidate without words: %+v", c)
			}
		}
		if fmt.Sprint(tiers) != fmt.Sprint(want) {
			t.Fatalf("Choose gives %v, trying everything %v", tiers, want)
		}
		seen := map[string]bool{}
		for _, p := range got.Passed {
			if p.Reason == "" || p.Code == "" || p.Code.Status() == 500 {
				t.Fatalf("passed over without a reason: %+v", p)
			}
			seen[p.Node] = true
		}
		for _, n := range nodes {
			if (want[n.Node] == "") != seen[n.Node] {
				t.Fatalf("node %s is in neither list, or in both", n.Node)
			}
		}
	})
}

func TestChoosePicksADeviceThatCanServe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, claims := drawFleet(t)
		r := drawRequest(t)
		for _, c := range Choose(NewSnapshot(nodes, claims), r).Candidates {
			n := nodes[slices.IndexFunc(nodes, func(n NodeView) bool { return n.Node == c.Node })]
			if n.Summary != (c.Device == "") {
				t.Fatalf("%+v: only a summary has no device", c)
			}
			if n.Summary {
				continue
			}
			d := n.Devices[slices.IndexFunc(n.Devices, func(d Device) bool { return d.ID == c.Device })]
			if d.Problem != "" || d.Free-claims[SlotKey{c.Node, c.Device}] <= 0 || d.FreeBytes < r.MemoryBytes {
				t.Fatalf("%+v cannot serve on %+v", c, d)
			}
		}
	})
}

func TestChooseDoesNotDependOnTheOrderOfNodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, claims := drawFleet(t)
		r := drawRequest(t)
		want := fmt.Sprintf("%+v", Choose(NewSnapshot(nodes, claims), r))
		shuffled := rapid.Permutation(nodes).Draw(t, "shuffled")
		if got := fmt.Sprintf("%+v", Choose(NewSnapshot(shuffled, claims), r)); got != want {
			t.Fatalf("one order gives\n%s\nanother\n%s", want, got)
		}
	})
}

func TestChooseLeavesTheSnapshotAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, claims := drawFleet(t)
		s := NewSnapshot(nodes, claims)
		before := fmt.Sprintf("%+v", s)
		Choose(s, drawRequest(t))
		if after := fmt.Sprintf("%+v", s); after != before {
			t.Fatalf("Choose changed\n%s\ninto\n%s", before, after)
		}
	})
}

// As many claims as there are free slots: then nothing is left, and each one went
// to a slot of its own.
func TestClaimsFillTheFleetExactly(t *testing.T) {
	s := fleetOf(40)
	s.Claims = map[SlotKey]int{}
	free := 0
	for _, n := range s.Nodes {
		_, f, _, _, _ := n.Totals()
		free += f
	}
	for range free {
		d := Choose(s, Request{Model: "m"})
		if !assert.NotEmpty(t, d.Candidates) {
			return
		}
		c := d.Candidates[0]
		s.Claims[SlotKey{c.Node, c.Device}]++
	}
	assert.Len(t, s.Claims, free, "one claim a slot")
	assert.Empty(t, Choose(s, Request{Model: "m"}).Candidates)
}

// The point of warm workers: when there is one that would do, it is found, however
// large the fleet.
func TestOneParkedWorkerInTenThousandNodesIsFound(t *testing.T) {
	s := fleetOf(10_000)
	at := rand.N(len(s.Nodes))
	for i := range s.Nodes {
		for j := range s.Nodes[i].Devices {
			s.Nodes[i].Devices[j].Warm = nil
		}
	}
	s.Claims = nil
	d := &s.Nodes[at].Devices[5]
	d.Free, d.Busy, d.Warm = 1, 0, map[string]int{"vllm": 1}
	got := Choose(s, Request{Model: "m"}).Candidates[0]
	assert.Equal(t, s.Nodes[at].Node, got.Node)
	assert.Equal(t, d.ID, got.Device)
}

func TestColdStartLeavesParkedWorkersAlone(t *testing.T) {
	n := NodeView{Alive: true, Capacity: Capacity{Node: "a", Runtimes: []Runtime{{Name: "vllm", Kind: KindVLLM, Zygote: "up"}}}}
	n.Devices = []Device{
		{ID: "parked", Slots: 2, Free: 1, Busy: 1, Warm: map[string]int{"vllm": 1}},
		{ID: "bare", Slots: 2, Free: 2},
	}
	s := NewSnapshot([]NodeView{n}, nil)
	assert.Equal(t, "bare", Choose(s, Request{Model: "m", Start: StartCold}).Candidates[0].Device)
	assert.Equal(t, "parked", Choose(s, Request{Model: "m"}).Candidates[0].Device)
}

func TestAgentAndPlacerResolveARuntimeAlike(t *testing.T) {
	one := []Runtime{{Name: "a"}}
	two := []Runtime{{Name: "b"}, {Name: "a"}}
	for _, c := range []struct {
		have   []Runtime
		asked  string
		want   string
		reason string
	}{
		{one, "", "a", ""},
		{two, "a", "a", ""},
		{nil, "", "", "has no runtime installed"},
		{two, "", "", "has 2 runtimes [a b] and the request names none"},
		{two, "c", "", `has no runtime "c" (has [a b])`},
		{nil, "c", "", "has no runtime installed"},
	} {
		got, passed := FindRuntime(c.have, Request{Runtime: c.asked}, "n")
		assert.Equal(t, c.want, got.Name)
		if c.reason == "" {
			assert.Nil(t, passed)
		} else {
			assert.Equal(t, &Passed{"n", CodeUnknownRuntime, c.reason}, passed)
		}
	}
}
