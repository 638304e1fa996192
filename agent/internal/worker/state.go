package worker

import (
	"fmt"
	"slices"
)

// State is where a worker stands. Only Warm counts as idle.
type State string

// The states of a worker, in the order of its life.
const (
	Spawning State = "spawning" // forked or started, has not answered yet
	Warm     State = "warm"     // parked: imports done, device ready, no model
	Loading  State = "loading"  // has a placement, does not serve yet
	Serving  State = "serving"  // the engine says it serves (the agent's probe decides on ready)
	Sleeping State = "sleeping" // holds the model, its weights are out of the device
	Draining State = "draining" // on its way out: finishes what runs, or is being killed
	Dead     State = "dead"     // terminal: every process is proven gone
)

// moves holds every legal edge. No edge leads back to Warm: a worker serves at
// most one placement in its life. Spawning leads to Loading for a cold start,
// which is never parked.
var moves = map[State][]State{
	Spawning: {Warm, Loading, Dead},
	Warm:     {Loading, Draining, Dead},
	Loading:  {Serving, Draining, Dead},
	Serving:  {Sleeping, Draining, Dead},
	Sleeping: {Serving, Draining, Dead},
	Draining: {Dead},
	Dead:     {},
}

// States lists every state in the order of a worker's life.
func States() []State { return []State{Spawning, Warm, Loading, Serving, Sleeping, Draining, Dead} }

// CanMove reports whether a worker may go from one state to the other.
func CanMove(from, to State) bool { return slices.Contains(moves[from], to) }

// Move returns to, or an error that names the illegal edge.
func Move(from, to State) (State, error) {
	if !CanMove(from, to) {
		return from, fmt.Errorf("move worker: illegal transition %s -> %s", from, to)
	}
	return to, nil
}

// onIllegal is called for an illegal edge after it was refused and logged. Tests
// make it panic: such an edge is a bug, never an operator's mistake.
var onIllegal = func(error) {}
