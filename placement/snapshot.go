package placement

import "sort"

// Snapshot is an immutable view of all nodes at one instant, the input of
// [Choose]. Claims holds the coordinator's own claims that no capacity has
// answered yet: without it two requests in one breath would pick the same slot.
//
// Invariant: Nodes is sorted by name, without duplicates; see [NewSnapshot].
type Snapshot struct {
	Nodes  []NodeView
	Claims map[SlotKey]int
}

// SlotKey names a device of a node.
type SlotKey struct{ Node, Device string }

// NewSnapshot sorts nodes by name, so that equal views choose equally.
func NewSnapshot(nodes []NodeView, claims map[SlotKey]int) Snapshot {
	n := append([]NodeView(nil), nodes...)
	sort.Slice(n, func(i, j int) bool { return n[i].Node < n[j].Node })
	return Snapshot{Nodes: n, Claims: claims}
}
