package coordinator

import (
	"context"
	"sync"
	"time"

	"warmd/placement"
)

// maxEvents bounds what is kept of our own events.
const maxEvents = 1024

// ring keeps the latest events of this coordinator and lets any number of readers
// follow it. A reader that is too slow misses the oldest; the numbers show it.
type ring struct {
	name string

	mu   sync.Mutex
	seq  uint64 // of the newest event; it is at kept[(seq-1) % maxEvents]
	kept []placement.Event
	grew chan struct{}
}

func newRing(name string) *ring { return &ring{name: name, grew: make(chan struct{})} }

// add numbers and keeps an event. It never blocks.
func (r *ring) add(e placement.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	e.Seq = r.seq
	if e.At.IsZero() {
		e.At = time.Now().UTC()
	}
	if e.Node == "" {
		e.Node = r.name
	}
	if len(r.kept) < maxEvents {
		r.kept = append(r.kept, e)
	} else {
		r.kept[(r.seq-1)%maxEvents] = e
	}
	close(r.grew)
	r.grew = make(chan struct{})
}

// since returns what is kept after seq, oldest first, and a channel that is closed
// with the next event.
func (r *ring) since(seq uint64) ([]placement.Event, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := max(seq, r.seq-uint64(len(r.kept)))
	out := make([]placement.Event, 0, r.seq-from)
	for s := from; s < r.seq; s++ {
		out = append(out, r.kept[s%maxEvents])
	}
	return out, r.grew
}

// follow calls each for every event after seq until it returns false or ctx ends.
func (r *ring) follow(ctx context.Context, seq uint64, each func(placement.Event) bool) {
	for {
		news, grew := r.since(seq)
		for _, e := range news {
			seq = e.Seq
			if !each(e) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-grew:
		}
	}
}

// once lets the end of a start through once: the agent that started the engine and
// the coordinator that asked for it both tell it, in words of their own.
type once struct {
	told map[string]bool
	old  []string // in the order they came, so that memory is bounded
}

const onceKept = 4096

func newOnce() *once { return &once{told: map[string]bool{}} }

func (o *once) first(e placement.Event) bool {
	switch e.Kind {
	case "placement.ready", "placement.failed", "placement.released":
	default:
		return true
	}
	key := e.Kind + " " + e.Placement
	if o.told[key] {
		return false
	}
	o.told[key] = true
	if o.old = append(o.old, key); len(o.old) > onceKept {
		delete(o.told, o.old[0])
		o.old = o.old[1:]
	}
	return true
}
