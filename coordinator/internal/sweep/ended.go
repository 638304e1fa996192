package sweep

import (
	"context"
	"errors"
	"fmt"
	"time"

	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// deadNodes fails ready placements of nodes that have been silent for NodeGone. The
// clock is this leader's own and runs only while it looks: neither a new leader nor a
// clock that jumps fails anything at once.
func (t *term) deadNodes(ctx context.Context, records []store.Record, fleet placement.Fleet) error {
	now := time.Now()
	alive := map[string]bool{}
	for _, n := range fleet.Nodes {
		alive[n.Node] = n.Alive
	}
	named := map[string]bool{}
	for _, r := range records {
		if r.State != placement.Ready {
			continue
		}
		named[r.Node] = true
		if alive[r.Node] {
			continue
		}
		since, known := t.silent[r.Node]
		if !known {
			t.silent[r.Node] = now
			continue
		}
		if now.Sub(since) < t.cfg.NodeGone {
			continue
		}
		reason := fmt.Sprintf("node %s has not been heard of for %s", r.Node, now.Sub(since).Round(time.Second))
		if err := t.finish(ctx, r, placement.Failed, reason, "check the host; place the model again where it should run"); err != nil {
			return err
		}
	}
	for node := range t.silent {
		if alive[node] || !named[node] {
			delete(t.silent, node)
		}
	}
	return nil
}

// finish writes the end of a placement.
func (t *term) finish(ctx context.Context, r store.Record, to placement.State, reason, hint string) error {
	next, err := placement.Move(r.State, to)
	if err != nil {
		return err
	}
	r.State, r.Reason, r.Hint, r.Updated = next, reason, hint, time.Now().UTC().Round(0)
	if to == placement.Failed {
		r.Code = placement.CodeWorkerLost
	}
	_, err = t.fx.Update(ctx, r, t.fence)
	switch {
	case errors.Is(err, store.ErrChanged), errors.Is(err, store.ErrNotFound):
		return nil // somebody was faster; the next pass looks again
	case err != nil:
		return fmt.Errorf("end %s: %w", r.ID, err)
	}
	t.cfg.Log.Info("placement ended by the sweeper", "placement", r.ID, "state", to, "reason", reason)
	t.cfg.Emit(placement.Event{At: time.Now().UTC(), Node: r.Node, Kind: "placement." + string(to), Placement: r.ID, Worker: r.Worker, Device: r.Device, Message: reason})
	return nil
}
