package placer

import (
	"context"
	"errors"
	"io"
	"time"

	agentapi "warmd/agent/api"
	"warmd/placement"
)

// verdict is how an attempt ended: ready, or err.
type verdict struct {
	ready bool
	err   *placement.Error
}

// claim is step 3: PUT, follow, and PUT again to the same node while the outcome is
// unknown. Only when the node has been silent for long enough is it given up; should
// it have taken the claim after all, it lets go of the worker when nobody has asked
// for a while, and the sweeper releases what the record does not name.
func (s *start) claim(ctx context.Context) verdict {
	ctx, cancel := context.WithDeadline(ctx, s.deadline.Add(s.p.cfg.Grace))
	defer cancel()
	begin := time.Now()
	var silent time.Time // since when we have heard nothing
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		last, heard, err := s.put(ctx, begin)
		switch e, refused := errors.AsType[*placement.Error](err); {
		case last.Event == placement.EventReady:
			return verdict{ready: true}
		case last.Event == placement.EventReleased:
			return verdict{err: placement.Errorf(placement.CodeReleased, "released while it was starting")}
		case last.Event == placement.EventFailed && last.Error != nil:
			return verdict{err: last.Error}
		case last.Event == placement.EventFailed:
			return verdict{err: placement.Errorf(placement.CodeStartFailed, "node %s says failed and no reason", s.rec.Node)}
		case refused && e.Code != placement.CodeUnavailable:
			s.answered(e.Capacity)
			said := *e
			if said.Hint == "" {
				said.Hint = hints[said.Code]
			}
			return verdict{err: &said}
		case ctx.Err() != nil:
			return verdict{err: placement.Errorf(placement.CodeTimeout, "not ready within %s on node %s", s.req.Timeout(), s.rec.Node).
				WithHint("see warmctl logs %s, or give it more time with --timeout", s.id)}
		}
		now := time.Now()
		if heard {
			pause = 200 * time.Millisecond // a node that takes it up and drops it again
		}
		if heard || silent.IsZero() {
			silent = now
		}
		if now.Sub(silent) >= s.patience() {
			s.p.cfg.Log.Warn("node does not answer", "node", s.rec.Node, "placement", s.id, "attempt", s.rec.Attempt, "error", err)
			s.p.fx.MarkUnreachable(s.rec.Node)
			return verdict{err: placement.Errorf(placement.CodeUnavailable, "node %s did not answer for %.0f s: %v", s.rec.Node, now.Sub(silent).Seconds(), err).
				WithHint("is its agent running? systemctl status warmd-agent")}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// patience is how long silence is borne: short while another node could do it and
// nothing has begun, or membership has given the node up; long once it has accepted.
func (s *start) patience() time.Duration {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	nodes := p.nodes()
	for i := range nodes {
		if nodes[i].Node == s.rec.Node && left(nodes[i]) {
			return p.cfg.LostBefore
		}
	}
	if s.accepted {
		return p.cfg.LostAfter
	}
	d := placement.Choose(placement.Snapshot{Nodes: nodes, Claims: p.overlay.counts(nodes)}, s.req)
	for _, c := range d.Candidates {
		if c.Node != s.rec.Node && !s.skips(c, nodes) {
			return p.cfg.LostBefore
		}
	}
	return p.cfg.LostAlone
}

// put sends one PUT and follows its answer to the end of the stream.
func (s *start) put(ctx context.Context, begin time.Time) (last placement.Progress, heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(s.p.cfg.ClaimTimeout, cancel)
	defer watchdog.Stop()
	s.p.stream(s, cancel)
	defer s.p.stream(s, nil)
	claim := agentapi.Claim{
		Attempt: s.rec.Attempt, Request: s.req, Device: s.rec.Device,
		DeadlineSeconds: max(time.Until(s.deadline).Seconds(), 0.001),
	}
	err = s.p.fx.Claim(ctx, s.rec.Node, s.addr, s.id, claim, func(l placement.Progress) bool {
		if !heard {
			heard = true
			watchdog.Stop()
		}
		last = l
		s.heard(l, begin)
		return true
	})
	if err == nil && !last.Last() {
		err = io.ErrUnexpectedEOF
	}
	return last, heard, err
}

// stream notes how to cut a stream off, should its node turn out to be gone.
func (p *Placer) stream(s *start, cancel context.CancelFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cancel == nil {
		delete(p.streams, s)
	} else {
		p.streams[s] = cancel
	}
}

// heard takes one line of the agent.
func (s *start) heard(l placement.Progress, begin time.Time) {
	if l.Placement != nil {
		s.learn(*l.Placement)
	}
	switch l.Event {
	case placement.EventAccepted:
		s.answered(l.Capacity)
		if s.accepted {
			return // a PUT again: callers have heard it
		}
		s.accepted = true
		s.p.cfg.Observe("claim", time.Since(begin))
		p := s.rec.Placement
		p.State = placement.Loading // a quasi-state: told, never stored
		s.f.say(l, &p)
	case placement.EventReady, placement.EventFailed, placement.EventReleased:
		s.answered(l.Capacity)
	case placement.EventPhase:
		l.Placement = nil
		s.f.say(l, nil)
	}
}

// learn takes from the agent's word what the agent owns.
func (s *start) learn(p placement.Placement) {
	r := &s.rec
	take := func(to *string, from string) {
		if from != "" {
			*to = from
		}
	}
	take(&r.Device, p.Device)
	take(&r.Worker, p.Worker)
	take(&r.Runtime, p.Runtime)
	take(&r.Endpoint, p.Endpoint)
	take(&r.TraceID, p.TraceID)
	if p.Tier != "" {
		r.Tier = p.Tier
	}
	if p.StartSeconds > 0 {
		r.StartSeconds = p.StartSeconds
	}
}

// answered takes the node's fresh capacity: the view is right from here on, and our
// claim in the overlay counts only until the view shows this word.
func (s *start) answered(c *placement.Capacity) {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if c != nil {
		p.fx.Apply(*c)
	}
	p.overlay.answered(s, c)
	p.dispatch()
}
