package device

import (
	"sync"
	"sync/atomic"

	"warmd/placement"
)

// Entry is one placement on this node. Reads load the record; its writers queue
// on mu, in the order in which the journal sees them.
type Entry struct {
	ID   string
	Feed *Feed

	book    *Book
	mu      sync.Mutex
	rec     atomic.Pointer[Record]
	journal Journal

	decided chan struct{} // closed when the claim was accepted or refused
	refusal *placement.Error
	owner   atomic.Pointer[Device]
	done    chan struct{} // closed when the placement is over and its slot settled
}

// Record is the entry's record as it is now.
func (e *Entry) Record() Record { return *e.rec.Load() }

// Placement is the entry's placement as it is now.
func (e *Entry) Placement() placement.Placement { return e.rec.Load().Placement }

// Update changes the record and journals it. A durable update that cannot be
// journaled does not happen.
func (e *Entry) Update(durable bool, change func(*Record)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := *e.rec.Load()
	change(&next)
	if err := e.journal.Put(&next, durable); err != nil && durable {
		return err
	}
	e.rec.Store(&next)
	return nil
}

// Decided returns nil once the claim was accepted, or its refusal.
func (e *Entry) Decided() *placement.Error {
	<-e.decided
	return e.refusal
}

// Accepted reports whether the claim was accepted.
func (e *Entry) Accepted() bool {
	select {
	case <-e.decided:
		return e.refusal == nil
	default:
		return false
	}
}

// Done closes when the placement is over and its slot is settled.
func (e *Entry) Done() <-chan struct{} { return e.done }

// Owner is the device that holds, or held, the placement; nil for an old one.
func (e *Entry) Owner() *Device { return e.owner.Load() }
