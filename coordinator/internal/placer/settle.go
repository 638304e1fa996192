package placer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// conclude gives the answer, then writes it: the caller does not wait for etcd. It
// is not lost when we die in between: the record is still assigned, so its next
// owner sends the same PUT and hears the same answer.
func (s *start) conclude(ctx context.Context, to placement.State, e *placement.Error) {
	rec := s.rec
	if !s.move(&rec, to) {
		return
	}
	rec.Updated = time.Now().UTC().Round(0)
	line := placement.Progress{Error: e}
	result := string(to)
	switch to {
	case placement.Ready:
		line.Event = placement.EventReady
		s.p.emit(rec.Placement, "placement.ready", fmt.Sprintf("%s answers at %s after %.2f s (%s)", rec.Request.Name, rec.Endpoint, rec.StartSeconds, rec.Tier))
	case placement.Released:
		line.Event = placement.EventReleased
		rec.Reason = e.Message
	default:
		line.Event = placement.EventFailed
		rec.Code, rec.Reason, rec.Hint = e.Code, e.Message, e.Hint
		rec.Endpoint = ""
		result = string(e.Code)
		s.p.emit(rec.Placement, "placement.failed", e.Message)
	}
	s.p.cfg.Done(result, rec.Placement)
	p := rec.Placement
	s.f.say(line, &p)
	s.settle(ctx, rec)
}

// settle writes the end of a start until it is written, or somebody else's word
// stands. If that word is about another node, what we started is released: the
// record is the truth.
func (s *start) settle(ctx context.Context, rec store.Record) {
	for {
		_, err := s.persist(ctx, rec)
		if err == nil || ctx.Err() != nil {
			return
		}
		cur, err := s.reread(ctx)
		if err != nil {
			return // gone: nothing to settle
		}
		switch {
		case rec.State == placement.Ready && cur.State == placement.Assigned && cur.Attempt == rec.Attempt && cur.Node == rec.Node:
			rec.Revision, rec.Owner = cur.Revision, cur.Owner // taken over meanwhile: a token is a token
			continue
		case cur.State == rec.State && cur.Attempt == rec.Attempt:
			return
		case rec.State == placement.Ready && (cur.State.Terminal() || cur.Node != rec.Node):
			s.p.cfg.Log.Warn("record names another end: releasing ours", "placement", s.id, "node", rec.Node, "state", cur.State, "owner", cur.Owner)
			c, cancel := context.WithTimeout(ctx, time.Minute)
			_, _ = s.p.fx.Release(c, rec.Node, s.addr, s.id, 0) // the sweeper repeats it if this fails
			cancel()
		}
		return
	}
}

// persist writes with patience: etcd may be away for a while, and only its "no" is
// an answer.
func (s *start) persist(ctx context.Context, rec store.Record) (store.Record, error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		got, err := s.p.fx.Update(ctx, rec, store.NoFence)
		if err == nil || ctx.Err() != nil || errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) {
			return got, err
		}
		select {
		case <-ctx.Done():
			return store.Record{}, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// reread reads the record with the same patience.
func (s *start) reread(ctx context.Context) (store.Record, error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		got, err := s.p.fx.Get(ctx, s.id)
		if err == nil || ctx.Err() != nil || errors.Is(err, store.ErrNotFound) {
			return got, err
		}
		select {
		case <-ctx.Done():
			return store.Record{}, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// lost is a write that somebody else was faster with: from here on we only watch.
func (s *start) lost(ctx context.Context, err error) *placement.Error {
	s.unclaim()
	if errors.Is(err, store.ErrChanged) {
		if cur, err := s.reread(ctx); err == nil {
			s.rec = cur
			return placement.Errorf(errFound, "taken over")
		}
	}
	s.rec = store.Record{}
	return placement.Errorf(placement.CodeInternal, "write placement %s: %v", s.id, err)
}

// overtaken reports whether the record is at a higher attempt than ours.
func (s *start) overtaken(ctx context.Context) bool {
	cur, err := s.reread(ctx)
	if err != nil || cur.Attempt <= s.rec.Attempt && !cur.State.Terminal() {
		return false
	}
	s.rec = cur
	return true
}

// existing is the record that our request id names, if any.
func (s *start) existing(ctx context.Context) (store.Record, error) {
	if s.req.ID == "" || s.rec.Revision != 0 {
		return store.Record{}, store.ErrNotFound
	}
	return s.p.fx.ByRequest(ctx, s.req.ID)
}

// found makes s a follower of a record that its request id names, or refuses when
// the two requests are not the same.
func (s *start) found(rec store.Record) *placement.Error {
	if !rec.Request.Normalize().Same(s.req) {
		return conflict(s.req.ID, rec.ID, rec.Request)
	}
	s.rec = rec
	return placement.Errorf(errFound, "request id is known")
}

// watch follows a record that another owner carries, until it says ready or ends.
func (s *start) watch(ctx context.Context) {
	ctx, cancel := context.WithDeadline(ctx, s.deadline.Add(s.p.cfg.Grace))
	defer cancel()
	for {
		p := s.rec.Placement
		switch s.rec.State {
		case placement.Ready:
			s.f.say(placement.Progress{Event: placement.EventReady}, &p)
			return
		case placement.Released:
			s.f.say(placement.Progress{Event: placement.EventReleased, Error: placement.Errorf(placement.CodeReleased, "placement %s was released", p.ID)}, &p)
			return
		case placement.Failed:
			code := s.rec.Code
			if code == "" {
				code = placement.CodeStartFailed
			}
			s.f.say(placement.Progress{Event: placement.EventFailed, Error: placement.Errorf(code, "%s", p.Reason).WithHint("%s", p.Hint)}, &p)
			return
		}
		s.f.say(placement.Progress{Event: placement.EventAssigned, Message: "followed: another coordinator places it"}, &p)
		next, err := s.p.fx.Await(ctx, s.rec.ID, s.rec.Revision)
		switch {
		case err == nil:
			s.rec = next
		case errors.Is(err, store.ErrNotFound):
			s.f.say(placement.Progress{Event: placement.EventFailed, Error: placement.Errorf(placement.CodeUnavailable, "placement %s was given up before it began", s.rec.ID).WithHint("ask again")}, &p)
			return
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			s.f.say(placement.Progress{Event: placement.EventFailed, Error: placement.Errorf(placement.CodeTimeout, "placement %s is not ready within %s", s.rec.ID, s.req.Timeout()).
				WithHint("it goes on: see warmctl describe %s", s.rec.ID)}, &p)
			return
		default:
			return
		}
	}
}

// abandon undoes a creation whose outcome is unknown: the caller is told no, so the
// record must not come to life later.
func (p *Placer) abandon(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.abandoned[id] = true
	p.wg.Go(func() { p.forget(p.base, id) })
}

// abandonTime is how long etcd may still apply a write that we gave up on.
const abandonTime = time.Minute

// forget deletes an abandoned record. It looks until etcd has been well for a
// while, since the lost write may be applied late. A record that has another owner by
// now is not ours to delete: we were cut off, it was taken over, and its engine serves.
func (p *Placer) forget(ctx context.Context, id string) {
	for until := time.Now().Add(abandonTime); ; {
		rec, err := p.fx.Get(ctx, id)
		if err == nil && rec.Owner == p.cfg.Instance && rec.State == placement.Assigned {
			err = p.fx.Delete(ctx, rec, store.NoFence)
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, store.ErrNotFound) || err == nil {
			if err == nil || time.Now().After(until) {
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Second):
		}
	}
	p.mu.Lock()
	delete(p.abandoned, id)
	p.mu.Unlock()
}
