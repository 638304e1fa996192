package placer

import (
	"slices"

	"warmd/placement"
)

// overlay holds our own claims that the view does not show yet. Without it two
// requests in one breath would choose the same slot.
//
// A claim counts against its slot until the node's own word covers it:
//
//	the node lists the placement on a device, or
//	the claim was answered, and the view is at least as new as the answer
//
// so no timer decides, and a late gossip message cannot make a slot look free.
type overlay map[*start]*ownClaim

type ownClaim struct {
	slot     placement.SlotKey
	id       string
	answered bool
	epoch    int64
	gen      uint64
}

func (o overlay) add(s *start, slot placement.SlotKey) { o[s] = &ownClaim{slot: slot, id: s.id} }

func (o overlay) drop(s *start) { delete(o, s) }

// answered notes what capacity the node had after it took the claim.
func (o overlay) answered(s *start, c *placement.Capacity) {
	own := o[s]
	switch {
	case own == nil:
	case c == nil: // the agent did not say: all we can do is trust the next word
		delete(o, s)
	default:
		own.answered, own.epoch, own.gen = true, c.Epoch, c.Generation
	}
}

// counts is the claims that still count, by slot; it forgets the others. nodes is
// sorted by name.
func (o overlay) counts(nodes []placement.NodeView) map[placement.SlotKey]int {
	if len(o) == 0 {
		return nil
	}
	n := make(map[placement.SlotKey]int, len(o))
	for s, own := range o {
		at, found := slices.BinarySearchFunc(nodes, own.slot.Node, func(v placement.NodeView, name string) int {
			switch {
			case v.Node < name:
				return -1
			case v.Node > name:
				return 1
			}
			return 0
		})
		if found && own.shownBy(nodes[at].Capacity) {
			delete(o, s)
			continue
		}
		n[own.slot]++
	}
	return n
}

func (own *ownClaim) shownBy(c placement.Capacity) bool {
	if own.answered {
		return c.Epoch > own.epoch || c.Epoch == own.epoch && c.Generation >= own.gen
	}
	for _, d := range c.Devices {
		if slices.Contains(d.Placements, own.id) {
			return true
		}
	}
	return false
}
