package placer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// awaken is step 0: a model that sleeps, and was asked for in the same words, is woken
// instead of being started once more. It reports whether that is the answer; whatever
// is in the way leaves the start to the other steps, as if nobody slept.
func (s *start) awaken(ctx context.Context) bool {
	p, begin := s.p, time.Now()
	p.mu.Lock()
	c, ok := placement.Asleep(placement.Snapshot{Nodes: p.nodes()}, s.req)
	p.mu.Unlock()
	if !ok || s.rec.Revision != 0 {
		return false
	}
	if _, err := s.existing(ctx); !errors.Is(err, store.ErrNotFound) {
		return false // a request that was seen before: it has its answer
	}
	rec, err := p.fx.Get(ctx, c.Placement)
	if err != nil || rec.State != placement.Ready || rec.Node != c.Node || !rec.Request.Normalize().Same(s.req) {
		return false
	}
	line := rec.Placement
	line.Tier, line.Sleeping = placement.TierSleeping, true
	s.f.say(placement.Progress{Event: placement.EventAssigned, Message: c.Why}, &line)
	wake, cancel := context.WithDeadline(ctx, s.deadline)
	defer cancel()
	if _, err := p.fx.Wake(wake, c.Node, c.Addr, rec.ID, s.req.Traceparent); err != nil {
		p.cfg.Log.Warn("model that sleeps is not woken", "placement", rec.ID, "node", c.Node, "error", err)
		return false
	}
	s.join(ctx, rec)
	line.Sleeping, line.StartSeconds = false, time.Since(begin).Seconds()
	p.cfg.Done(string(placement.Ready), line)
	p.emit(line, "placement.woken", fmt.Sprintf("%s answers at %s after %.2f s (%s)", line.Request.Name, line.Endpoint, line.StartSeconds, line.Tier))
	s.f.say(placement.Progress{Event: placement.EventReady}, &line)
	return true
}

// join makes our request id name the placement that answered it. When etcd is away the
// answer counts more: the same request again would start another worker then.
func (s *start) join(ctx context.Context, rec store.Record) {
	if s.req.ID == "" {
		return
	}
	id := rec.ID
	for range 3 { // somebody else may write the record in between
		_, err := s.p.fx.Join(ctx, rec, s.req.ID)
		if err == nil {
			return
		}
		if rec, err = s.p.fx.Get(ctx, id); err != nil {
			s.p.cfg.Log.Warn("request id is not recorded", "placement", id, "request_id", s.req.ID, "error", err)
			return
		}
	}
}
