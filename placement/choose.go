package placement

import (
	"cmp"
	"slices"
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
	Device  string `json:"device"` // empty when only a summary is known: the agent chooses
	Runtime string `json:"runtime"`
	Tier    Tier   `json:"tier"`
	Why     string `json:"why"`   // in words, what put it at its place
	Score   int64  `json:"score"` // orders candidates of one tier, higher first
	// Placement is the one to wake, of a candidate of tier sleeping; see [Asleep].
	Placement string `json:"placement,omitempty"`
}

// Passed is a node that was passed over.
type Passed struct {
	Node   string `json:"node"`
	Code   Code   `json:"code"`
	Reason string `json:"reason"`
}

// Choose orders the nodes of a snapshot, each with its best device, for a request.
// It is pure: the same snapshot and request give the same decision. The rule:
//
//  1. a node is passed over, with a reason, when it is not alive, drains, is not
//     the node asked for, lacks the runtime, or has no free slot;
//  2. a warmer tier wins (warm before cold); start=warm admits warm only,
//     start=cold is cold anywhere;
//  3. within a tier: a parked idle worker before a fork, then the busier device
//     (pack, so that whole GPUs stay free), then more free memory; a cold start
//     leaves parked workers alone while it can;
//  4. ties fall to the node name, then to the order of its devices.
//
// It looks at every device: a sample would miss the one parked worker of a busy
// fleet, and a scan of 10,000 nodes costs milliseconds.
func Choose(s Snapshot, r Request) Decision {
	r = r.Normalize()
	claims := s.claimsByNode()
	var d Decision
	picks := make([]pick, 0, len(s.Nodes))
	for i := range s.Nodes {
		n := &s.Nodes[i]
		rt, passed := admit(n, r)
		if passed.Code == "" {
			p, ok := bestDevice(n, rt, r, claims[i])
			if ok {
				p.node = i
				picks = append(picks, p)
				continue
			}
			passed = whyNoDevice(n, &n.Runtimes[rt], r, claims[i])
		}
		d.Passed = append(d.Passed, passed)
	}
	slices.SortFunc(picks, before)
	// Words are made last and once a node: they cost more than the choice.
	d.Candidates = make([]Candidate, len(picks))
	for i, p := range picks {
		d.Candidates[i] = p.candidate(&s.Nodes[p.node], r)
	}
	return d
}

// pick is a candidate before it is put into words. It holds no pointer, so that
// sorting ten thousand of them is cheap.
type pick struct {
	node, device, runtime int // indices; Snapshot.Nodes is sorted by name
	score                 int64
	idle                  int
	cold                  bool
}

// bestDevice picks the device of one node; false when none will do.
func bestDevice(n *NodeView, rt int, r Request, claims map[string]int) (best pick, ok bool) {
	c := claimWalk{n, claims, claims[anyDevice]}
	for i := range n.Devices {
		dev := &n.Devices[i]
		claimed := c.on(dev, &n.Runtimes[rt])
		if !fits(n, dev, &n.Runtimes[rt], r, claimed) {
			continue
		}
		p := pick{device: i, runtime: rt}
		p.grade(dev, &n.Runtimes[rt], r, claimed)
		if p.cold && r.Start == StartWarm {
			continue
		}
		if !ok || before(p, best) < 0 {
			best, ok = p, true
		}
	}
	return best, ok
}

// fits reports whether a device could take the request now.
func fits(n *NodeView, dev *Device, rt *Runtime, r Request, claimed int) bool {
	return dev.Free > claimed && dev.Problem == "" && builtFor(rt, dev) &&
		(dev.FreeBytes >= r.MemoryBytes || n.Summary) // a summary is too coarse to refuse by
}

func builtFor(rt *Runtime, dev *Device) bool {
	return rt.Device == "" || dev.Kind == "" || rt.Device == dev.Kind
}

// grade says how warm the request would start on a device. Busy slots weigh more
// than any memory in GiB, a parked worker more than any number of busy slots.
func (p *pick) grade(dev *Device, rt *Runtime, r Request, claimed int) {
	p.score = int64(dev.Busy)<<20 + min(dev.FreeBytes>>30, 1<<20-1)
	switch idle := dev.Warm[rt.Name] - claimed; { // a claim takes a parked worker first
	case r.Start == StartCold || rt.Kind == KindExec: // exec has no warm stage, whatever its helper is called
		if p.cold = true; dev.parked() > claimed {
			p.score -= 1 << 40
		}
	case idle > 0:
		p.idle = idle
		p.score += 1 << 40
	default:
		p.cold = rt.Zygote != "up"
	}
}

// before is the order of picks: negative when a is the better one.
func before(a, b pick) int {
	switch {
	case a.cold != b.cold && a.cold:
		return 1
	case a.cold != b.cold:
		return -1
	}
	return cmp.Or(cmp.Compare(b.score, a.score), a.node-b.node, a.device-b.device)
}
