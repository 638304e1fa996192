package placement

import (
	"fmt"
	"slices"
)

// State is where a placement stands. See the package comment for the drawing.
type State string

// The states of a placement. Only Assigned, Ready, Failed and Released are stored.
const (
	Pending  State = "pending"  // no node has been chosen, or the last one refused
	Assigned State = "assigned" // a node is recorded; its agent may not know yet
	Loading  State = "loading"  // the agent accepted and fsynced the claim
	Ready    State = "ready"    // a real token came out of the endpoint
	Failed   State = "failed"   // terminal: Reason says why
	Released State = "released" // terminal: somebody asked for the end
)

// moves holds every legal edge. Two edges lead back to Pending, and each of them
// adds one to Attempt; no other edge changes it.
var moves = map[State][]State{
	Pending:  {Assigned, Failed, Released},
	Assigned: {Loading, Pending, Ready, Failed, Released},
	Loading:  {Ready, Pending, Failed, Released},
	Ready:    {Released, Failed},
	Failed:   {},
	Released: {},
}

// States lists every state in the order of a placement's life.
func States() []State { return []State{Pending, Assigned, Loading, Ready, Failed, Released} }

// CanMove reports whether a placement may go from one state to the other.
func CanMove(from, to State) bool { return slices.Contains(moves[from], to) }

// Move returns to, or an error that names the illegal edge. The caller decides
// whether that is fatal: it is a bug, never an operator's mistake.
func Move(from, to State) (State, error) {
	if !CanMove(from, to) {
		return from, fmt.Errorf("move placement: illegal transition %s -> %s", from, to)
	}
	return to, nil
}

// Terminal reports whether no edge leaves s.
func (s State) Terminal() bool { return s == Failed || s == Released }

// Valid reports whether s is one of the named states.
func (s State) Valid() bool { _, ok := moves[s]; return ok }

// Tier is how warm a start was, or would be.
type Tier string

// The tiers, warmest first.
const (
	TierServing  Tier = "serving"  // the model already answers
	TierSleeping Tier = "sleeping" // the engine holds the model, its weights are out of the device
	TierWarm     Tier = "warm"     // a parked worker, or a zygote that forks one in milliseconds
	TierCold     Tier = "cold"     // a plain engine start
)

// Valid reports whether t is one of the named tiers.
func (t Tier) Valid() bool {
	return t == TierServing || t == TierSleeping || t == TierWarm || t == TierCold
}

// Start is what a caller wants of a start.
type Start string

// The start modes. Auto takes the warmest there is and falls back to cold; Warm
// is refused when nothing warm can be had; Cold runs the stock start on purpose.
const (
	StartAuto Start = "auto"
	StartWarm Start = "warm"
	StartCold Start = "cold"
)
