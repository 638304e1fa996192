package placement

import (
	"maps"
	"slices"
)

// Asleep finds a placement that sleeps and was asked for in the same words: to wake it
// is a warmer start than any that [Choose] has. It is pure, like Choose, and takes the
// first by the names of nodes and the order of their devices. A cold start is never a
// wake, a node that drains starts nothing, and only exact capacity names who sleeps.
func Asleep(s Snapshot, r Request) (Candidate, bool) {
	r = r.Normalize()
	if r.Start == StartCold {
		return Candidate{}, false
	}
	key := r.Key()
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if !n.Alive || n.Draining {
			continue
		}
		for _, d := range n.Devices {
			for _, id := range slices.Sorted(maps.Keys(d.Sleeping)) {
				if d.Sleeping[id] == key && d.Problem == "" {
					return Candidate{
						Node: n.Node, Addr: n.Addr, Device: d.ID, Runtime: r.Runtime, Tier: TierSleeping, Placement: id,
						Why: "placement " + id + " of the same request sleeps here",
					}, true
				}
			}
		}
	}
	return Candidate{}, false
}
