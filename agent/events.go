package agent

import (
	"sync"

	"warmd/placement"
)

// keptEvents is how many events a node remembers.
const keptEvents = 1024

// events is the ring of what happened, for people. Adding never waits for a
// reader: a follower that falls more than a ring behind misses the oldest.
type events struct {
	mu   sync.Mutex
	ring []placement.Event // at most keptEvents, oldest first from next
	seq  uint64            // of the newest
	wake chan struct{}     // closed and replaced with every event
}

func newEvents() *events { return &events{wake: make(chan struct{})} }

func (e *events) add(ev placement.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seq++
	ev.Seq = e.seq
	if len(e.ring) < keptEvents {
		e.ring = append(e.ring, ev)
	} else {
		e.ring[(e.seq-1)%keptEvents] = ev
	}
	close(e.wake)
	e.wake = make(chan struct{})
}

// after returns the kept events behind seq, and a channel that closes at the next.
func (e *events) after(seq uint64) ([]placement.Event, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := e.seq - uint64(len(e.ring)) // the one before the oldest
	if seq > e.seq {
		seq = 0 // of an earlier life of the agent
	}
	out := make([]placement.Event, 0, e.seq-max(seq, first))
	for s := max(seq, first) + 1; s <= e.seq; s++ {
		out = append(out, e.ring[(s-1)%keptEvents])
	}
	return out, e.wake
}
