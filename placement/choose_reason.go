package placement

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The kinds of a runtime.
const (
	KindVLLM = "vllm"
	KindExec = "exec"
)

// anyDevice is, among the claims on the devices of a node, their sum.
const anyDevice = "\x00any"

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

// whyNoDevice says why no device of a node will do: the reason of the last one that
// was not simply full, else that all are.
func whyNoDevice(n *NodeView, rt *Runtime, r Request, claims map[string]int) Passed {
	passed := Passed{n.Node, CodeNoCapacity, "every slot is taken"}
	if claimed := claims[anyDevice]; claimed > 0 {
		passed.Reason += ", " + strconv.Itoa(claimed) + " of them claimed a moment ago"
	}
	c := claimWalk{n, claims, claims[anyDevice]}
	for i := range n.Devices {
		dev := &n.Devices[i]
		claimed := c.on(dev, rt)
		switch {
		case dev.Problem != "":
			passed = passOver(n, CodeNoCapacity, "%s: %s", dev.label(), dev.Problem)
		case !builtFor(rt, dev):
			passed = passOver(n, CodeUnknownRuntime, "runtime %s is for %s, %s is %s", rt.Name, rt.Device, dev.label(), dev.Kind)
		case dev.Free <= claimed:
		case !n.Summary && dev.FreeBytes < r.MemoryBytes:
			passed = passOver(n, CodeNoCapacity, "%s has %d MiB free, %d MiB wanted", dev.label(), dev.FreeBytes>>20, r.MemoryBytes>>20)
		default:
			passed = passOver(n, CodeNoWarm, "start=warm, but runtime %s has %s", rt.Name, noWarm(rt))
		}
	}
	return passed
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

// claimsByNode groups the claims by the index of their node, with their sum. Most
// nodes have none: no lookup by name is left for the scan.
func (s Snapshot) claimsByNode() []map[string]int {
	out := make([]map[string]int, len(s.Nodes))
	for k, n := range s.Claims {
		i, found := slices.BinarySearchFunc(s.Nodes, k.Node, func(v NodeView, name string) int { return strings.Compare(v.Node, name) })
		if !found {
			continue
		}
		if out[i] == nil {
			out[i] = map[string]int{}
		}
		out[i][k.Device] += n
		out[i][anyDevice] += n
	}
	return out
}

// claimWalk hands the claims of a node out to its devices, asked for in order. The
// devices of a summary have no id: the first ones that could serve take the claims.
type claimWalk struct {
	node   *NodeView
	claims map[string]int
	left   int
}

func (c *claimWalk) on(dev *Device, rt *Runtime) int {
	switch {
	case c.left == 0:
		return 0
	case !c.node.Summary:
		return c.claims[dev.ID]
	case dev.Problem != "" || !builtFor(rt, dev):
		return 0
	}
	n := min(c.left, dev.Free)
	c.left -= n
	return n
}
