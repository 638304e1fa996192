package placer

import (
	"context"
	"slices"
	"time"

	"warmd/placement"
)

// mark remembers a refusal, so that the same answer is not asked for twice.
type mark struct {
	forGood bool // the node cannot serve this request at all
	epoch   int64
	gen     uint64 // else: skip until the node says something newer than this
}

// markOf marks a node as of the word it refused with, or the one in the view.
func (p *Placer) markOf(node string, c *placement.Capacity) mark {
	if c != nil {
		return mark{epoch: c.Epoch, gen: c.Generation}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.fx.Fleet().Nodes {
		if n.Node == node {
			return mark{epoch: n.Epoch, gen: n.Generation}
		}
	}
	return mark{}
}

// Wake looks whether anything that waits fits now, and lets go of streams to nodes
// that are gone. It is called whenever the view changes.
func (p *Placer) Wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dispatch()
	if len(p.streams) == 0 {
		return
	}
	gone := map[string]bool{}
	for _, n := range p.fx.Fleet().Nodes {
		gone[n.Node] = left(n)
	}
	for s, cancel := range p.streams {
		if gone[s.rec.Node] {
			cancel()
		}
	}
}

// left reports whether membership has given a node up; a node that one call did not
// reach is not enough to cut the others off.
func left(n placement.NodeView) bool { return !n.Alive && (n.Status == "failed" || n.Status == "left") }

func (p *Placer) nodes() []placement.NodeView {
	return placement.NewSnapshot(p.fx.Fleet().Nodes, nil).Nodes
}

// dispatch hands candidates to those who wait, first come first. Requests that
// cannot be told apart by Choose fail together, so one look serves all of them.
// The caller holds p.mu.
func (p *Placer) dispatch() {
	if len(p.queue) == 0 {
		return
	}
	nodes := p.nodes()
	type shape struct {
		runtime, node string
		start         placement.Start
		bytes         int64
	}
	full := map[shape]bool{}
	p.queue = slices.DeleteFunc(p.queue, func(s *start) bool {
		k := shape{s.req.Runtime, s.req.Node, s.req.Start, s.req.MemoryBytes}
		if full[k] && len(s.tried) == 0 {
			return false
		}
		c, _, ok := p.pick(nodes, s)
		if !ok {
			full[k] = full[k] || len(s.tried) == 0
			return false
		}
		s.gift = c
		s.given <- struct{}{}
		return true
	})
}

// pick chooses for s and claims the slot in the overlay. The caller holds p.mu.
func (p *Placer) pick(nodes []placement.NodeView, s *start) (placement.Candidate, placement.Decision, bool) {
	d := placement.Choose(placement.Snapshot{Nodes: nodes, Claims: p.overlay.counts(nodes)}, s.req)
	for _, c := range d.Candidates {
		if !s.skips(c, nodes) {
			p.overlay.add(s, placement.SlotKey{Node: c.Node, Device: c.Device})
			return c, d, true
		}
	}
	return placement.Candidate{}, d, false
}

// skips reports whether a candidate refused before and has said nothing since.
func (s *start) skips(c placement.Candidate, nodes []placement.NodeView) bool {
	if s.tried[placement.SlotKey{Node: c.Node}].forGood {
		return true
	}
	m, ok := s.tried[placement.SlotKey{Node: c.Node, Device: c.Device}]
	if !ok {
		return false
	}
	for i := range nodes {
		if nodes[i].Node == c.Node {
			return nodes[i].Epoch < m.epoch || nodes[i].Epoch == m.epoch && nodes[i].Generation <= m.gen
		}
	}
	return true
}

// choose is step 1. It answers at once when a slot is free, and else waits in the
// queue if the caller wants that and time could help.
func (s *start) choose(ctx context.Context) (placement.Candidate, *placement.Error) {
	p := s.p
	begin := time.Now()
	p.mu.Lock()
	p.dispatch() // who waits longer goes first
	nodes := p.nodes()
	c, d, ok := p.pick(nodes, s)
	p.mu.Unlock()
	p.cfg.Observe("choose", time.Since(begin))
	if ok {
		return c, nil
	}
	refusal := s.refusal(nodes, d)
	if !s.req.WaitCapacity || !timeHelps(d) {
		return c, refusal
	}
	if rec, err := s.existing(ctx); err == nil {
		return c, s.found(rec)
	}
	return s.wait(ctx, refusal)
}

// wait queues until a slot is given, the deadline passes, or nobody wants it.
func (s *start) wait(ctx context.Context, refusal *placement.Error) (placement.Candidate, *placement.Error) {
	p := s.p
	ctx, cancel := context.WithDeadline(ctx, s.deadline)
	defer cancel()
	p.mu.Lock()
	if len(p.queue) >= p.cfg.MaxQueue {
		p.mu.Unlock()
		return placement.Candidate{}, placement.Errorf(placement.CodeNoCapacity, "%d requests wait for capacity already, the most that is allowed: %s", p.cfg.MaxQueue, refusal.Message).
			WithHint("add nodes, or release something")
	}
	at, _ := slices.BinarySearchFunc(p.queue, s.seq, func(q *start, seq uint64) int { return int(int64(q.seq) - int64(seq)) })
	p.queue = slices.Insert(p.queue, at, s)
	p.mu.Unlock()
	if s.rec.Revision == 0 {
		s.f.wanted(cancel)
		defer s.f.wanted(nil)
	}
	s.f.say(placement.Progress{Event: placement.EventQueued, Message: refusal.Message}, nil)
	p.Wake() // what became free while we queued
	select {
	case <-s.given:
		return s.gift, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = slices.DeleteFunc(p.queue, func(q *start) bool { return q == s })
	select {
	case <-s.given: // given in the same moment: hand it on
		p.overlay.drop(s)
		p.dispatch()
	default:
	}
	return placement.Candidate{}, placement.Errorf(refusal.Code, "no slot became free within %s: %s", s.req.Timeout(), refusal.Message).
		WithHint("release something, or give it more time with --timeout")
}

// timeHelps reports whether any node may take the request later.
func timeHelps(d placement.Decision) bool {
	if len(d.Candidates) > 0 || len(d.Passed) == 0 {
		return true
	}
	return slices.ContainsFunc(d.Passed, func(n placement.Passed) bool {
		switch n.Code {
		case placement.CodeNoCapacity, placement.CodeNoWarm, placement.CodeDraining, placement.CodeUnavailable:
			return true
		}
		return false
	})
}
