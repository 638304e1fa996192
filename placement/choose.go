package placement

import (
	"fmt"
	"sort"
)

// Decision is the answer of [Choose]: candidates best first, and for every node
// that is not one of them the reason why.
type Decision struct {
	Candidates []Candidate `json:"candidates"`
	Passed     []Passed    `json:"passed,omitempty"`
}

// Candidate is a device that should accept the request.
type Candidate struct {
	Node    string `json:"node"`
	Addr    string `json:"addr,omitempty"`
	Device  string `json:"device"`
	Runtime string `json:"runtime"`
	Tier    Tier   `json:"tier"`
	// Why says in words what put it at its place.
	Why string `json:"why"`
	// Score orders candidates of one tier, higher first.
	Score int64 `json:"score"`
}

// Passed is a node that was passed over.
type Passed struct {
	Node   string `json:"node"`
	Code   Code   `json:"code"`
	Reason string `json:"reason"`
}

// Choose orders the devices of a snapshot for a request. It is pure: the same
// snapshot and request give the same decision. The rule:
//
//  1. a node is passed over, with a reason, when it is not alive, drains, is not
//     the node asked for, lacks the runtime, or has no free slot;
//  2. a warmer tier wins (warm before cold); start=warm admits warm only,
//     start=cold is cold anywhere;
//  3. within a tier: a parked idle worker before a fork, then the busier device
//     of a node (pack, so that whole GPUs stay free), then more free memory;
//  4. ties fall to the node name, so that nothing depends on map order.
func Choose(s Snapshot, r Request) Decision {
	r = r.Normalize()
	var d Decision
	for i := range s.Nodes {
		n := &s.Nodes[i]
		rt, passed := admit(n, r)
		if passed != nil {
			d.Passed = append(d.Passed, *passed)
			continue
		}
		best, reason := bestDevice(s, n, rt, r)
		if best == nil {
			d.Passed = append(d.Passed, *reason)
			continue
		}
		d.Candidates = append(d.Candidates, *best)
	}
	sort.SliceStable(d.Candidates, func(i, j int) bool { return before(d.Candidates[i], d.Candidates[j]) })
	return d
}

// admit checks what holds for a node as a whole and finds its runtime.
func admit(n *NodeView, r Request) (Runtime, *Passed) {
	pass := func(c Code, format string, args ...any) (Runtime, *Passed) {
		return Runtime{}, &Passed{Node: n.Node, Code: c, Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case r.Node != "" && n.Node != r.Node:
		return pass(CodeNotFound, "the request names node %s", r.Node)
	case !n.Alive:
		return pass(CodeUnavailable, "not alive (%s, last heard %.0f s ago)", n.Status, n.AgeSeconds)
	case n.Draining:
		return pass(CodeDraining, "draining")
	case len(n.Devices) == 0:
		return pass(CodeNoCapacity, "has no device")
	}
	return FindRuntime(n.Runtimes, r, n.Node)
}

// FindRuntime resolves the runtime of a request on a node: by name, or the only
// one there is. The agent uses the same rule, so both name the same runtime.
func FindRuntime(have []Runtime, r Request, node string) (Runtime, *Passed) {
	names := make([]string, 0, len(have))
	for _, rt := range have {
		if rt.Name == r.Runtime {
			return rt, nil
		}
		names = append(names, rt.Name)
	}
	sort.Strings(names)
	switch {
	case len(have) == 0:
		return Runtime{}, &Passed{node, CodeUnknownRuntime, "has no runtime installed"}
	case r.Runtime != "":
		return Runtime{}, &Passed{node, CodeUnknownRuntime, fmt.Sprintf("has no runtime %q (has %v)", r.Runtime, names)}
	case len(have) > 1:
		return Runtime{}, &Passed{node, CodeUnknownRuntime, fmt.Sprintf("has %d runtimes %v and the request names none", len(have), names)}
	}
	return have[0], nil
}

// bestDevice picks the device of one node, or says why none will do.
func bestDevice(s Snapshot, n *NodeView, rt Runtime, r Request) (*Candidate, *Passed) {
	var best *Candidate
	reason := &Passed{n.Node, CodeNoCapacity, "every slot is taken"}
	for _, dev := range n.Devices {
		claimed := s.Claims[SlotKey{n.Node, dev.ID}]
		free := dev.Free - claimed
		switch {
		case dev.Problem != "":
			reason = &Passed{n.Node, CodeNoCapacity, dev.ID + ": " + dev.Problem}
			continue
		case rt.Device != "" && dev.Kind != "" && rt.Device != dev.Kind:
			reason = &Passed{n.Node, CodeUnknownRuntime, fmt.Sprintf("runtime %s is for %s, %s is %s", rt.Name, rt.Device, dev.ID, dev.Kind)}
			continue
		case free <= 0:
			continue
		case r.MemoryBytes > 0 && !n.Summary && dev.FreeBytes < r.MemoryBytes:
			reason = &Passed{n.Node, CodeNoCapacity, fmt.Sprintf("%s has %d MiB free, %d MiB wanted", dev.ID, dev.FreeBytes>>20, r.MemoryBytes>>20)}
			continue
		}
		c := grade(n, rt, r, dev, claimed)
		if c == nil {
			reason = &Passed{n.Node, CodeNoWarm, "start=warm, but runtime " + rt.Name + " has no zygote (" + zygoteWord(rt) + ")"}
			continue
		}
		if best == nil || before(*c, *best) {
			best = c
		}
	}
	if best == nil {
		return nil, reason
	}
	return best, nil
}

// grade says how warm the request would start on a device, nil when start=warm
// cannot be had there.
func grade(n *NodeView, rt Runtime, r Request, dev Device, claimed int) *Candidate {
	c := &Candidate{Node: n.Node, Addr: n.Addr, Device: dev.ID, Runtime: rt.Name, Tier: TierCold}
	idle := dev.Warm[rt.Name] - claimed
	// Pack first (32 slots of headroom in the low bits), then the larger free memory in GiB.
	c.Score = int64(dev.Busy)<<20 + min(dev.FreeBytes>>30, 1<<19)
	switch {
	case r.Start == StartCold:
		c.Why = "cold start asked for"
	case idle > 0:
		c.Tier, c.Why = TierWarm, fmt.Sprintf("%d idle warm worker(s)", idle)
		c.Score += 1 << 40
	case rt.Zygote == "up":
		c.Tier, c.Why = TierWarm, "free slot, zygote up: a worker is forked on demand"
	case r.Start == StartWarm:
		return nil
	default:
		c.Why = "free slot, no zygote (" + zygoteWord(rt) + ")"
	}
	return c
}

func zygoteWord(rt Runtime) string {
	switch {
	case rt.Problem != "":
		return rt.Problem
	case rt.Zygote == "":
		return "kind " + rt.Kind
	}
	return rt.Zygote
}

// before is the order of candidates.
func before(a, b Candidate) bool {
	if a.Tier != b.Tier {
		return a.Tier == TierWarm
	}
	if a.Score != b.Score {
		return a.Score > b.Score
	}
	if a.Node != b.Node {
		return a.Node < b.Node
	}
	return a.Device < b.Device
}
