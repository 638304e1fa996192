package placer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// start is one run of one placement: the state of the goroutine that carries it.
//
//	rec.Revision != 0  iff  a record exists that was ours when we last looked
type start struct {
	p        *Placer
	f        *Flight
	id       string
	req      placement.Request
	seq      uint64 // order of arrival: the queue is sorted by it
	deadline time.Time
	rec      store.Record
	addr     string

	tried map[placement.SlotKey]mark
	spent int              // claims that count against placement.MaxAttempts
	last  *placement.Error // the latest refusal: the answer when nobody is left

	accepted bool // the agent has this attempt, fsynced
	given    chan struct{}
	gift     placement.Candidate
}

// errFound tells run that the request id has a record: see start.found.
const errFound = placement.Code("found")

// minResume is the least time that a record taken over late is given: its model may
// serve already, and only the agent knows.
const minResume = 10 * time.Second

// adopt makes s go on with a record instead of beginning with a choice.
func (s *start) adopt(rec store.Record) {
	s.rec, s.spent = rec, rec.Attempt
	left := min(time.Until(rec.Created.Add(rec.Request.Timeout())), rec.Request.Timeout())
	s.deadline = time.Now().Add(max(left, minResume))
	for _, n := range s.p.fx.Fleet().Nodes {
		if n.Node == rec.Node {
			s.addr = n.Addr
		}
	}
}

// run is the whole placement. It returns when the answer is given and recorded, or
// when ctx ends: then the record stays as it is, for the next owner.
func (s *start) run(ctx context.Context) {
	defer s.f.end()
	defer s.unclaim()
	if s.awaken(ctx) {
		return
	}
	for go1 := s.rec.Revision != 0; ; go1 = false {
		if !go1 {
			c, refusal := s.choose(ctx)
			if refusal != nil {
				s.refuse(ctx, s.known(ctx, refusal))
				return
			}
			if refusal = s.write(ctx, c); refusal != nil {
				s.refuse(ctx, refusal)
				return
			}
		}
		s.say(placement.EventAssigned, "")
		v := s.claim(ctx)
		s.unclaim()
		switch {
		case ctx.Err() != nil:
			return
		case v.ready:
			s.conclude(ctx, placement.Ready, nil)
			return
		case v.err.Code == placement.CodeReleased:
			s.conclude(ctx, placement.Released, v.err)
			return
		case v.err.Code == placement.CodeStaleAttempt && s.overtaken(ctx):
			s.watch(ctx)
			return
		case !s.again(v.err):
			s.conclude(ctx, placement.Failed, s.last)
			return
		}
		s.f.say(placement.Progress{Event: placement.EventRetry, Error: s.last, Message: s.last.Message}, nil)
	}
}

// known looks whether the request id has a placement already: a repeated request must
// get it even when the fleet is full.
func (s *start) known(ctx context.Context, refusal *placement.Error) *placement.Error {
	if s.rec.Revision != 0 || refusal.Code == errFound {
		return refusal
	}
	if rec, err := s.existing(ctx); err == nil {
		return s.found(rec)
	}
	return refusal
}

// refuse ends a placement that found no slot, or whose choice could not be recorded.
func (s *start) refuse(ctx context.Context, refusal *placement.Error) {
	if ctx.Err() != nil {
		return
	}
	switch {
	case refusal.Code == errFound:
		s.watch(ctx)
	case s.rec.Revision != 0:
		s.conclude(ctx, placement.Failed, refusal)
	default:
		s.p.cfg.Done(string(refusal.Code), placement.Placement{})
		s.f.say(placement.Progress{Event: placement.EventFailed, Error: refusal}, nil)
	}
}

// write is step 2: the choice is recorded before any agent hears of it.
func (s *start) write(ctx context.Context, c placement.Candidate) *placement.Error {
	begin := time.Now()
	defer func() { s.p.cfg.Observe("txn", time.Since(begin)) }()
	now := begin.UTC().Round(0)
	rec := s.rec
	if rec.Revision == 0 {
		rec = store.Record{Placement: placement.Placement{ID: s.id, Request: s.req, State: placement.Pending, Created: now}}
	} else if !s.move(&rec, placement.Pending) {
		return placement.Errorf(placement.CodeInternal, "place %s: record is %s", s.id, rec.State)
	}
	if !s.move(&rec, placement.Assigned) {
		return placement.Errorf(placement.CodeInternal, "place %s: record is %s", s.id, rec.State)
	}
	rec.Attempt++
	rec.Owner, rec.Updated = s.p.cfg.Instance, now
	rec.Node, rec.Device, rec.Runtime, rec.Tier = c.Node, c.Device, c.Runtime, c.Tier
	rec.Worker, rec.Endpoint, rec.Reason, rec.Hint = "", "", "", ""
	s.addr, s.accepted = c.Addr, false

	if s.rec.Revision != 0 {
		got, err := s.persist(ctx, rec)
		if err != nil {
			return s.lost(ctx, err)
		}
		s.rec = got
		return nil
	}
	got, err := s.p.fx.Create(ctx, rec, store.NoFence)
	for errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrNotFound) {
		rec.ID = s.rename() // the slot stays ours, and with it the turn of who has waited
		got, err = s.p.fx.Create(ctx, rec, store.NoFence)
	}
	if err == nil {
		s.rec = got
		return nil
	}
	s.unclaim()
	if errors.Is(err, store.ErrRequestTaken) {
		return s.found(got)
	}
	s.p.abandon(s.id)
	return placement.AsError(err)
}

// move makes one step of the state machine. An illegal one is a bug: it is logged
// and refused, and a test that meets it fails.
func (s *start) move(rec *store.Record, to placement.State) bool {
	next, err := placement.Move(rec.State, to)
	if err != nil {
		s.p.cfg.Log.Error("illegal transition", "placement", s.id, "from", rec.State, "to", to)
		return false
	}
	rec.State = next
	return true
}

// again decides whether a refused or failed attempt is followed by another, and
// notes what was learnt.
func (s *start) again(e *placement.Error) bool {
	s.last = e
	if e.Code != placement.CodeStaleAttempt && !e.Code.Retryable() {
		return false
	}
	slot := placement.SlotKey{Node: s.rec.Node, Device: s.rec.Device}
	free := false // does not count: the node did nothing, and the caller wants to wait
	switch e.Code {
	case placement.CodeNoCapacity, placement.CodeNoWarm, placement.CodeDraining, placement.CodeUnavailable:
		s.tried[slot] = s.p.markOf(slot.Node, e.Capacity)
		free = s.req.WaitCapacity && e.Code != placement.CodeUnavailable
	case placement.CodeWorkerLost, placement.CodeStaleAttempt: // the same node may do better
	default: // another node may do better, this one will not
		s.tried[placement.SlotKey{Node: slot.Node}] = mark{forGood: true}
	}
	if !free {
		s.spent++
	}
	if s.spent >= placement.MaxAttempts {
		spent := *e
		spent.Message = fmt.Sprintf("%d attempts spent, the last on node %s: %s", s.rec.Attempt, s.rec.Node, e.Message)
		s.last = &spent
		return false
	}
	return time.Now().Before(s.deadline)
}

// say tells followers where the placement stands.
func (s *start) say(event, message string) {
	p := s.rec.Placement
	s.f.say(placement.Progress{Event: event, Message: message}, &p)
	if event == placement.EventAssigned {
		s.p.emit(p, "placement.assigned", fmt.Sprintf("%s to node %s, attempt %d", p.Request.Name, p.Node, p.Attempt))
	}
}

func (p *Placer) emit(pl placement.Placement, kind, message string) {
	p.cfg.Emit(placement.Event{At: time.Now().UTC(), Node: pl.Node, Kind: kind, Placement: pl.ID, Worker: pl.Worker, Device: pl.Device, Message: message})
}

// unclaim gives our claim in the overlay up, and what it held to those who wait.
func (s *start) unclaim() {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if own := p.overlay[s]; own != nil && !own.answered {
		p.overlay.drop(s)
		p.dispatch()
	}
}

// rename takes another id, and returns it.
func (s *start) rename() string {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byID, s.id)
	s.id = p.freshID()
	p.byID[s.id] = s.f
	if own := p.overlay[s]; own != nil {
		own.id = s.id
	}
	return s.id
}
