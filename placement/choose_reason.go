package placement

import (
	"fmt"
	"slices"
	"strconv"
)

// The kinds of a runtime.
const (
	KindVLLM = "vllm"
	KindExec = "exec"
)

// codeTaken marks, inside Choose, a device that is merely full: any other reason
// of the same node says more. anyDevice is the sum of a node's claims.
const (
	codeTaken Code = "taken"
	anyDevice      = "\x00any"
)

func passOver(n *NodeView, c Code, format string, args ...any) Passed {
	return Passed{Node: n.Node, Code: c, Reason: fmt.Sprintf(format, args...)}
}

// admit checks what holds for a node as a whole and finds its runtime. A Passed
// without a code means that nothing is wrong.
func admit(n *NodeView, r Request) (int, Passed) {
	switch {
	case r.Node != "" && n.Node != r.Node:
		return 0, Passed{n.Node, CodeNotFound, "the request names node " + r.Node}
	case !n.Alive:
		return 0, passOver(n, CodeUnavailable, "not alive (%s, last heard %.0f s ago)", n.Status, n.AgeSeconds)
	case n.Draining:
		return 0, Passed{n.Node, CodeDraining, "draining"}
	case len(n.Devices) == 0:
		return 0, Passed{n.Node, CodeNoCapacity, "has no device"}
	}
	return findRuntime(n.Runtimes, r, n.Node)
}

// FindRuntime resolves the runtime of a request on a node: by name, or the only
// one there is. The agent uses the same rule, so both name the same runtime.
func FindRuntime(have []Runtime, r Request, node string) (Runtime, *Passed) {
	i, passed := findRuntime(have, r, node)
	if passed.Code != "" {
		return Runtime{}, &passed
	}
	return have[i], nil
}

func findRuntime(have []Runtime, r Request, node string) (int, Passed) {
	switch i := slices.IndexFunc(have, func(rt Runtime) bool { return rt.Name == r.Runtime }); {
	case i >= 0:
		return i, Passed{}
	case len(have) == 0:
		return 0, Passed{node, CodeUnknownRuntime, "has no runtime installed"}
	case r.Runtime == "" && len(have) == 1:
		return 0, Passed{}
	}
	names := make([]string, 0, len(have))
	for _, rt := range have {
		names = append(names, rt.Name)
	}
	slices.Sort(names)
	if r.Runtime != "" {
		return 0, Passed{node, CodeUnknownRuntime, fmt.Sprintf("has no runtime %q (has %v)", r.Runtime, names)}
	}
	return 0, Passed{node, CodeUnknownRuntime, fmt.Sprintf("has %d runtimes %v and the request names none", len(have), names)}
}

// unfit says why a device cannot take the request, if it cannot.
func unfit(n *NodeView, dev *Device, rt *Runtime, r Request, claimed int) Passed {
	switch {
	case dev.Problem != "":
		return passOver(n, CodeNoCapacity, "%s: %s", dev.label(), dev.Problem)
	case rt.Device != "" && dev.Kind != "" && rt.Device != dev.Kind:
		return passOver(n, CodeUnknownRuntime, "runtime %s is for %s, %s is %s", rt.Name, rt.Device, dev.label(), dev.Kind)
	case dev.Free <= claimed:
		return Passed{Code: codeTaken}
	case r.MemoryBytes > 0 && !n.Summary && dev.FreeBytes < r.MemoryBytes:
		return passOver(n, CodeNoCapacity, "%s has %d MiB free, %d MiB wanted", dev.label(), dev.FreeBytes>>20, r.MemoryBytes>>20)
	}
	return Passed{}
}

func (d *Device) label() string {
	if d.ID == "" {
		return "a device"
	}
	return d.ID
}

// parked counts the idle workers of every runtime.
func (d *Device) parked() (n int) {
	for _, w := range d.Warm {
		n += w
	}
	return n
}

func taken(n *NodeView, claimed int) Passed {
	if claimed > 0 {
		return passOver(n, CodeNoCapacity, "every slot is taken, %d of them claimed a moment ago", claimed)
	}
	return Passed{n.Node, CodeNoCapacity, "every slot is taken"}
}

// noWarm says why a runtime gives no warm start.
func noWarm(rt *Runtime) string {
	switch {
	case rt.Kind == KindExec:
		return "no warm stage (kind exec)"
	case rt.Problem != "":
		return "no zygote (" + rt.Problem + ")"
	case rt.Zygote == "":
		return "no zygote (kind " + rt.Kind + ")"
	}
	return "no zygote (" + rt.Zygote + ")"
}

func (p pick) candidate(n *NodeView, r Request) Candidate {
	rt := &n.Runtimes[p.runtime]
	c := Candidate{
		Node: n.Node, Addr: n.Addr, Device: n.Devices[p.device].ID, Runtime: rt.Name, Tier: TierWarm, Score: p.score,
	}
	switch {
	case r.Start == StartCold:
		c.Tier, c.Why = TierCold, "cold start asked for"
	case p.cold:
		c.Tier, c.Why = TierCold, "free slot, "+noWarm(rt)
	case p.idle == 1:
		c.Why = "1 idle warm worker"
	case p.idle > 0:
		c.Why = strconv.Itoa(p.idle) + " idle warm workers"
	default:
		c.Why = "free slot, zygote up: a worker is forked on demand"
	}
	return c
}

// claimsByNode groups the claims by node and device, with their sum: one lookup a
// node, and none for most, instead of one a device.
func (s Snapshot) claimsByNode() map[string]map[string]int {
	out := make(map[string]map[string]int, len(s.Claims))
	for k, n := range s.Claims {
		m := out[k.Node]
		if m == nil {
			m = map[string]int{}
			out[k.Node] = m
		}
		m[k.Device] += n
		m[anyDevice] += n
	}
	return out
}
