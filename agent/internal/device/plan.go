package device

import "slices"

// Target is how many workers of one runtime should be parked on the device.
type Target struct {
	Runtime string
	Warm    int
	// Forkable is false while the runtime has no zygote, or its forks fail and the
	// next try is not due.
	Forkable bool
}

// ParkState is where a parked worker stands for the plan.
type ParkState string

// The states of a parked worker. Only Warm counts as idle.
const (
	Forking  ParkState = "spawning"
	Warm     ParkState = "warm"
	Retiring ParkState = "draining"
)

// Parked is one unclaimed worker.
type Parked struct {
	ID, Runtime string
	State       ParkState
}

// Have is the device as it is.
//
// Invariant: Free + Busy + Quarantined == Slots.
type Have struct {
	Slots, Busy, Quarantined int
	Draining                 bool
	Parked                   []Parked
}

// Free is the number of slots that would accept a claim.
func (h Have) Free() int { return h.Slots - h.Busy - h.Quarantined }

// Action is one step towards the targets: exactly one field is set.
type Action struct {
	Fork   string // a runtime
	Retire string // a parked worker's ID
}

// Plan says what to do now. Per runtime it wants min(Warm, Free) parked: a slot
// that is taken needs the device's memory for its model, so the parked of every
// runtime give way, and come back the moment the slot is free. A worker still
// forking is not retired: it becomes warm in milliseconds and is judged then.
func Plan(targets []Target, h Have) []Action {
	var out []Action
	known := make(map[string]bool, len(targets))
	for _, t := range targets {
		known[t.Runtime] = true
		want := min(t.Warm, max(h.Free(), 0))
		if h.Draining {
			want = 0
		}
		var warm []string
		coming := 0
		for _, p := range h.Parked {
			switch {
			case p.Runtime != t.Runtime:
			case p.State == Warm:
				warm = append(warm, p.ID)
			case p.State == Forking:
				coming++
			}
		}
		// The newest go first: the oldest has its pages touched and its caches filled.
		for i := len(warm) - 1; i >= want; i-- {
			out = append(out, Action{Retire: warm[i]})
			warm = slices.Delete(warm, i, i+1)
		}
		for n := len(warm) + coming; t.Forkable && n < want; n++ {
			out = append(out, Action{Fork: t.Runtime})
		}
	}
	for _, p := range h.Parked {
		if !known[p.Runtime] && p.State == Warm { // the operator removed its runtime
			out = append(out, Action{Retire: p.ID})
		}
	}
	return out
}
