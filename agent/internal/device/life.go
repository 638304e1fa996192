package device

import (
	"context"
	"errors"
	"time"

	"warmd/placement"
)

// logLines of a dead engine go into its error.
const logLines = 20

// life is one accepted claim, from the fsync to the free slot. It is one
// goroutine: start (start.go), serve, end (end.go). It owns its worker and
// is the only writer of its entry's record (an attempt number aside).
type life struct {
	d     *Device
	e     *Entry
	claim Claim

	// How to start; the loop sets these before run.
	parked     *parked
	cold       bool
	coldReason string
	after      []<-chan struct{} // memory that must come back before the load
	adopted    bool              // accepted by an earlier agent: its record is on the disk
	fate       *ending           // adopted only to be ended this way

	accepted chan *placement.Error // one answer: nil, or the refusal
	ctx      context.Context       // ends with an *ending, or with the agent
	cancel   context.CancelCauseFunc

	worker  Worker
	resting chan struct{} // holds one while somebody has it sleep or wake
	pending *parked       // taken, but its fork was still under way when the life ended
	trace   Trace
	since   time.Time
	lastErr *Event // what the worker said before it died
	deaf    bool   // its events have ended without its death
	// freeBefore is the device's free memory when the slot was taken.
	freeBefore int64

	// The loop's: the worker for the View, and why the slot cannot be given back.
	shown       Worker
	quarantined string
}

// ending says how a life is to end. It is the cause of its context.
type ending struct {
	state  placement.State
	code   placement.Code
	reason string
	hint   string
	detail string
	grace  time.Duration
}

func (e *ending) Error() string { return e.reason }

func newLife(d *Device, c Claim) *life {
	l := &life{d: d, e: c.Entry, claim: c, accepted: make(chan *placement.Error, 1), resting: make(chan struct{}, 1), trace: noTrace{}, since: time.Now(), freeBefore: d.free.Load()}
	l.ctx, l.cancel = context.WithCancelCause(d.ctx)
	return l
}

// quit ends the life; the first call decides how.
func (l *life) quit(e *ending) { l.cancel(e) }

// run is the whole life.
func (l *life) run() {
	defer l.cancel(nil)
	if !l.adopted {
		if refusal := l.accept(); refusal != nil {
			l.giveBack()
			l.leave()
			l.accepted <- refusal
			return
		}
		l.accepted <- nil
	}
	switch {
	case l.fate != nil:
		l.quit(l.fate)
	case l.e.Placement().State != placement.Ready:
		guarded := make(chan struct{})
		l.d.wg.Go(func() { l.guard(guarded) })
		if err := l.start(); err != nil {
			l.quit(l.failure(err))
		}
		close(guarded)
	case l.worker != nil:
		l.rested() // it may have slept, or woken, while no agent looked
		l.d.post(func() {})
	}
	end := l.serve()
	if end == nil {
		return // the agent ends; the engine does not notice
	}
	l.end(end)
}

// serve waits for the end of a placement: a release, the death of its worker, or
// a start that failed. nil means that the agent ends.
func (l *life) serve() *ending {
	for {
		select {
		case <-l.ctx.Done():
			if end, ok := errors.AsType[*ending](context.Cause(l.ctx)); ok {
				return end
			}
			return nil
		case ev, ok := <-l.events():
			if dead := l.hear(ev, ok); dead != nil {
				return l.lost(dead)
			}
		}
	}
}

// line adds to the feed, with the record and the capacity of this moment.
func (l *life) line(event, message string) {
	p := l.e.Placement()
	var c *placement.Capacity
	if l.d.cfg.Capacity != nil {
		now := l.d.cfg.Capacity()
		c = &now
	}
	l.e.Feed.Add(placement.Progress{Event: event, Placement: &p, Capacity: c, Message: message})
}

// phase records one phase in the trace and the feed.
func (l *life) phase(name, proc string, start time.Time, dur time.Duration) {
	r := l.e.Record()
	l.trace.Phase(name, proc, start, dur)
	ph := placement.Phase{Name: name, Proc: proc, Start: start.Sub(r.Received).Seconds(), Duration: dur.Seconds()}
	ph.Before = ph.Start < 0 && ph.Start+ph.Duration <= 0
	l.e.Feed.Add(placement.Progress{Event: placement.EventPhase, Phase: &ph})
}

// wait waits for all of the channels.
func (l *life) wait(chs ...<-chan struct{}) error {
	for _, ch := range chs {
		select {
		case <-ch:
		case <-l.ctx.Done():
			return context.Cause(l.ctx)
		}
	}
	return nil
}
