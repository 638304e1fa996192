package sweep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// Bounds of the questions to agents.
const (
	askTime  = 3 * time.Second
	askWidth = 16 // nodes asked at once
)

// nodeMemory is what a leader remembers of a node between two questions.
type nodeMemory struct {
	epoch   int64
	asked   time.Time
	unknown map[string]int // how often the node knew nothing of a ready placement
}

// reconcile compares what nodes hold with what records say. A node is asked when it
// is new to this leader, when its agent has restarted, when it was away and is back,
// when its own word contradicts the records, and every Reconcile.
func (t *term) reconcile(ctx context.Context, records []store.Record, fleet placement.Fleet) error {
	byNode := map[string][]store.Record{}
	byID := make(map[string]store.Record, len(records))
	for _, r := range records {
		byID[r.ID] = r
		if r.State == placement.Ready {
			byNode[r.Node] = append(byNode[r.Node], r)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(askWidth)
	var failed sync.Map
	for _, n := range fleet.Nodes {
		m := t.nodes[n.Node]
		if m == nil {
			m = &nodeMemory{unknown: map[string]int{}}
			t.nodes[n.Node] = m
		}
		if !n.Alive {
			m.asked = time.Time{}
		}
		if !n.Alive && n.Status != "suspect" { // one that a call did not reach may answer the next
			continue
		}
		if m.epoch == n.Epoch && time.Since(m.asked) < t.cfg.Reconcile && !contradicts(n, byNode[n.Node], byID) {
			continue
		}
		g.Go(func() error {
			err := t.compare(gctx, n, m, byNode[n.Node], byID)
			switch {
			case errors.Is(err, store.ErrFenced):
				return err
			case err != nil:
				failed.Store(n.Node, err) // one node must not keep the others from being asked
			default:
				m.epoch, m.asked = n.Epoch, time.Now()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var errs []error
	failed.Range(func(node, err any) bool {
		errs = append(errs, fmt.Errorf("reconcile node %s: %w", node, err.(error)))
		return true
	})
	return errors.Join(errs...)
}

// contradicts says whether a node's exact word about itself misses a ready placement
// (its engine has died, most likely), or names one that a record has on another node: a
// claim sent before a partition arrives after it, for TCP repeats it, when the placement
// has long been tried elsewhere. The word alone ends nothing; it may be older than the
// record.
func contradicts(n placement.NodeView, ready []store.Record, byID map[string]store.Record) bool {
	if n.Summary {
		return false // it names none
	}
	has := map[string]bool{}
	for _, d := range n.Devices {
		for _, id := range d.Placements {
			has[id] = true
			if r, ok := byID[id]; ok && r.Node != n.Node {
				return true
			}
		}
	}
	return slices.ContainsFunc(ready, func(r store.Record) bool { return !has[r.ID] })
}

// compare asks one node. The records were read before the node was asked: what they
// call ready the node had, so what it does not have now is gone.
func (t *term) compare(ctx context.Context, n placement.NodeView, m *nodeMemory, ready []store.Record, byID map[string]store.Record) error {
	c, cancel := context.WithTimeout(ctx, askTime)
	held, err := t.fx.Held(c, n.Node, n.Addr)
	cancel()
	if err != nil {
		return err
	}
	has := make(map[string]bool, len(held))
	for _, p := range held {
		if p.State.Terminal() {
			continue
		}
		has[p.ID] = true
		if r, ok := byID[p.ID]; ok && r.Node == n.Node && r.Attempt == p.Attempt && !r.State.Terminal() {
			continue
		}
		if err := t.explain(ctx, n, p); err != nil {
			return err
		}
	}
	for _, r := range ready {
		if has[r.ID] {
			delete(m.unknown, r.ID)
			continue
		}
		if err := t.missing(ctx, n, m, r); err != nil {
			return err
		}
	}
	return nil
}

// explain finds out why a node holds what the records we know do not name, and asks
// etcd itself before anything is done about it.
func (t *term) explain(ctx context.Context, n placement.NodeView, p placement.Placement) error {
	r, err := t.fx.Get(ctx, p.ID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return t.adopt(ctx, n, p)
	case err != nil:
		return fmt.Errorf("read %s: %w", p.ID, err) // etcd is unwell: touch nothing
	case r.Node != n.Node && !r.State.Terminal(), r.State.Terminal(), r.Attempt > p.Attempt:
		t.release(n, p, r)
	case r.Attempt < p.Attempt && p.State == placement.Ready && r.State == placement.Assigned:
		// etcd knows less than the agent (it was restored from an older copy): the
		// agent has fsynced what it says.
		r.Attempt, r.State, r.Updated = p.Attempt, placement.Ready, time.Now().UTC().Round(0)
		fill(&r, n, p)
		if _, err := t.fx.Update(ctx, r, t.fence); err != nil && !errors.Is(err, store.ErrChanged) {
			return fmt.Errorf("correct %s: %w", p.ID, err)
		}
	}
	return nil
}

// adopt records a ready worker that no record names. Records outlive their placements
// by Retention, so this is not a leftover: etcd has lost data, or somebody placed with
// the agent alone. Its engine serves, and killing it would turn a fault of the control
// plane into an outage; recorded, it shows in `warmctl ps` and can be released.
func (t *term) adopt(ctx context.Context, n placement.NodeView, p placement.Placement) error {
	if p.State != placement.Ready {
		return nil // not ready and nobody asks for it: the agent lets go by itself
	}
	r := store.Record{Placement: p, Owner: t.cfg.Instance}
	fill(&r, n, p)
	r.Updated = time.Now().UTC().Round(0)
	_, err := t.fx.Create(ctx, r, t.fence)
	switch {
	case errors.Is(err, store.ErrRequestTaken):
		t.cfg.Log.Warn("worker without a record has a request id that another placement has", "placement", p.ID, "node", n.Node, "request_id", p.Request.ID)
		return nil
	case errors.Is(err, store.ErrExists):
		return nil
	case err != nil:
		return fmt.Errorf("adopt %s: %w", p.ID, err)
	}
	t.cfg.Log.Warn("placement recorded again from its agent", "placement", p.ID, "node", n.Node)
	t.cfg.Emit(placement.Event{At: time.Now().UTC(), Node: n.Node, Kind: "placement.adopted", Placement: p.ID, Worker: p.Worker, Device: p.Device,
		Message: "no record named this serving worker; it is recorded again"})
	return nil
}

func fill(r *store.Record, n placement.NodeView, p placement.Placement) {
	r.Node, r.Device, r.Worker, r.Runtime, r.Tier = n.Node, p.Device, p.Worker, p.Runtime, p.Tier
	r.Endpoint, r.TraceID, r.StartSeconds = p.Endpoint, p.TraceID, p.StartSeconds
}

// release lets go of a worker that the record does not name, with time to drain. It
// runs beside the pass, and longer than that: draining may take its grace.
func (t *term) release(n placement.NodeView, p placement.Placement, r store.Record) {
	key := n.Node + "/" + p.ID
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.releasing[key] {
		return
	}
	t.releasing[key] = true
	t.cfg.Log.Warn("releasing a worker that its record does not name", "placement", p.ID, "node", n.Node, "attempt", p.Attempt,
		"record_node", r.Node, "record_attempt", r.Attempt, "record_state", r.State)
	t.wg.Go(func() {
		c, cancel := context.WithTimeout(t.ctx, t.cfg.DrainGrace+time.Minute)
		defer cancel()
		_, err := t.fx.Release(c, n.Node, n.Addr, p.ID, t.cfg.DrainGrace)
		t.mu.Lock()
		delete(t.releasing, key)
		t.mu.Unlock()
		if err != nil && t.ctx.Err() == nil {
			t.cfg.Log.Warn("release", "placement", p.ID, "node", n.Node, "error", err)
		}
	})
}

// missing handles a ready record that its node does not hold.
func (t *term) missing(ctx context.Context, n placement.NodeView, m *nodeMemory, r store.Record) error {
	c, cancel := context.WithTimeout(ctx, askTime)
	p, err := t.fx.Ask(c, n.Node, n.Addr, r.ID)
	cancel()
	if e, ok := errors.AsType[*placement.Error](err); ok && e.Code == placement.CodeNotFound {
		// Said twice, by an agent that calls itself ready, before it is believed.
		if m.unknown[r.ID]++; m.unknown[r.ID] < 2 {
			return fmt.Errorf("ready placement %s is unknown there, asking again", r.ID)
		}
		delete(m.unknown, r.ID)
		return t.finish(ctx, r, placement.Failed, "node "+n.Node+" does not know this placement any more", "was its data folder lost? place the model again")
	}
	if err != nil {
		return err
	}
	switch p.State {
	case placement.Failed:
		reason := p.Reason
		if reason == "" {
			reason = "node " + n.Node + " says it failed"
		}
		return t.finish(ctx, r, placement.Failed, reason, p.Hint)
	case placement.Released:
		return t.finish(ctx, r, placement.Released, "released on node "+n.Node, "")
	}
	return nil
}
