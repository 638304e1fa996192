package device

import (
	"sync"
	"time"

	"warmd/placement"
)

// maxEnded bounds how many ended placements, and fences of refused ones, a node
// remembers.
const maxEnded = 2048

// Book holds the placements of a node, all devices, live and lately ended. It
// decides who starts a claim and who merely follows it: one id is one placement,
// whatever the number of callers and devices.
//
// Its lock is held for map operations only, so a read never waits for a disk.
type Book struct {
	mu      sync.RWMutex
	entries map[string]*Entry
	ended   []string       // ids of ended entries, oldest first
	seen    map[string]int // highest attempt of ids that were refused
	seenIDs []string
	journal Journal
}

// NewBook makes an empty book.
func NewBook(j Journal) *Book {
	return &Book{entries: make(map[string]*Entry), seen: make(map[string]int), journal: j}
}

// Open finds or makes the entry of a claim. fresh means that the caller must now
// start it, and end in [Device.Claim] accepting it or in [Book.Refuse]; otherwise
// the caller follows what another call began.
//
// The rules: a lower attempt than the highest seen is stale; the same attempt is
// the same answer; a higher attempt of a living placement takes it over (the
// caller lost our answer, the worker need not start twice); a higher attempt of a
// failed one starts anew; released is for ever.
func (b *Book) Open(id string, attempt int, req placement.Request, at time.Time) (e *Entry, fresh bool, err error) {
	b.mu.Lock()
	e = b.entries[id]
	if e == nil {
		if seen := b.seen[id]; attempt < seen {
			b.mu.Unlock()
			return nil, false, stale(id, attempt, seen)
		}
		e = b.add(id, attempt, req, at)
		b.mu.Unlock()
		return e, true, nil
	}
	p := e.Placement()
	switch {
	case attempt < p.Attempt:
		b.mu.Unlock()
		return nil, false, stale(id, attempt, p.Attempt)
	case p.State == placement.Released:
		b.mu.Unlock()
		return e, false, nil
	case !p.Request.Same(req):
		b.mu.Unlock()
		return nil, false, placement.Errorf(placement.CodeConflict, "placement %s was claimed with another request", id).
			WithHint("use a new request id for a new request")
	case attempt > p.Attempt && p.State.Terminal():
		select {
		case <-e.done:
		default: // its worker still holds a slot: the same id must not hold two
			b.mu.Unlock()
			return nil, false, placement.Errorf(placement.CodeNoCapacity, "attempt %d of placement %s is still being cleared away", p.Attempt, id)
		}
		b.remove(id)
		e = b.add(id, attempt, req, at)
		b.mu.Unlock()
		return e, true, nil
	}
	b.mu.Unlock()
	if attempt > p.Attempt {
		if e.Record().Ending != "" {
			return nil, false, placement.Errorf(placement.CodeNoCapacity, "attempt %d of placement %s is ending here", p.Attempt, id)
		}
		<-e.decided
		if e.refusal != nil {
			return e, false, nil
		}
		if err := e.Update(true, func(r *Record) { r.Placement.Attempt = max(r.Placement.Attempt, attempt) }); err != nil {
			return nil, false, err
		}
	}
	return e, false, nil
}

func stale(id string, attempt, seen int) error {
	return placement.Errorf(placement.CodeStaleAttempt, "attempt %d of placement %s is stale: attempt %d was seen", attempt, id, seen).
		WithHint("somebody else drives this placement now: ask the coordinator for its record")
}

func (b *Book) add(id string, attempt int, req placement.Request, at time.Time) *Entry {
	e := &Entry{ID: id, Feed: newFeed(at), book: b, journal: b.journal, decided: make(chan struct{}), done: make(chan struct{})}
	e.rec.Store(&Record{Received: at, Placement: placement.Placement{
		ID: id, Request: req, Attempt: attempt, State: placement.Assigned, Created: at, Updated: at,
	}})
	b.entries[id] = e
	return e
}

// Refuse forgets a fresh entry that was not accepted, but not its attempt.
func (b *Book) Refuse(e *Entry, err *placement.Error) {
	e.refusal = err
	close(e.decided)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.entries[e.ID] == e {
		delete(b.entries, e.ID)
	}
	if _, ok := b.seen[e.ID]; !ok {
		b.seenIDs = append(b.seenIDs, e.ID)
		if len(b.seenIDs) > maxEnded {
			delete(b.seen, b.seenIDs[0])
			b.seenIDs = b.seenIDs[1:]
		}
	}
	b.seen[e.ID] = max(b.seen[e.ID], e.Placement().Attempt)
}

// Restore puts a placement back that the journal remembers.
func (b *Book) Restore(r Record) *Entry {
	e := &Entry{ID: r.Placement.ID, Feed: newFeed(r.Received), book: b, journal: b.journal, decided: make(chan struct{}), done: make(chan struct{})}
	close(e.decided)
	e.rec.Store(&r)
	b.mu.Lock()
	b.entries[e.ID] = e
	b.mu.Unlock()
	p := r.Placement
	if !p.State.Terminal() {
		e.Feed.Add(placement.Progress{Event: placement.EventAccepted, Placement: &p, Message: "adopted after a restart of the agent"})
		return e
	}
	e.Feed.Add(lastLine(e.rec.Load(), nil))
	b.Ended(e)
	return e
}

// Tombstone remembers that an unknown id was released: a claim of it that is
// still under way somewhere must not start afterwards. ok is false when the id is
// not unknown after all.
func (b *Book) Tombstone(id string, at time.Time) (p placement.Placement, ok bool) {
	b.mu.Lock()
	if b.entries[id] != nil {
		b.mu.Unlock()
		return p, false
	}
	e := b.add(id, 0, placement.Request{}, at)
	b.mu.Unlock()
	_ = e.Update(false, func(r *Record) {
		r.Placement.State, r.Placement.Reason = placement.Released, "released; this node did not hold it"
	})
	close(e.decided)
	p = e.Placement()
	e.Feed.Add(lastLine(e.rec.Load(), nil))
	b.Ended(e)
	return p, true
}

// Ended marks an entry as over and drops the oldest beyond the bound.
func (b *Book) Ended(e *Entry) {
	close(e.done)
	e.Feed.trim()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = append(b.ended, e.ID)
	for len(b.ended) > maxEnded {
		id := b.ended[0]
		b.ended = b.ended[1:]
		if o := b.entries[id]; o != nil && o.Placement().State.Terminal() {
			delete(b.entries, id)
		}
	}
}

func (b *Book) remove(id string) {
	delete(b.entries, id)
	for i, x := range b.ended {
		if x == id {
			b.ended = append(b.ended[:i:i], b.ended[i+1:]...)
			return
		}
	}
}

// Get finds an entry whose claim was accepted.
func (b *Book) Get(id string) *Entry {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if e := b.entries[id]; e != nil && e.Accepted() {
		return e
	}
	return nil
}

// Await finds an entry and waits, for an fsync at most, until its claim is
// decided; nil when there is none or it was refused.
func (b *Book) Await(id string) *Entry {
	b.mu.RLock()
	e := b.entries[id]
	b.mu.RUnlock()
	if e == nil || e.Decided() != nil {
		return nil
	}
	return e
}

// List returns every accepted placement, in no order.
func (b *Book) List() []placement.Placement {
	b.mu.RLock()
	defer b.mu.RUnlock()
	out := make([]placement.Placement, 0, len(b.entries))
	for _, e := range b.entries {
		if e.Accepted() {
			out = append(out, e.Placement())
		}
	}
	return out
}
