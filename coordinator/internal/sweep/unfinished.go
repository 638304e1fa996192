package sweep

import (
	"context"
	"errors"
	"fmt"
	"time"

	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// unfinished takes over assigned records that nobody finishes. What we have heard of
// records may come by a member of etcd that died or was cut off with a coordinator, and
// lacks the last that this one wrote: when one is gone, etcd itself is read, once.
func (t *term) unfinished(ctx context.Context, records []store.Record, _ placement.Fleet) error {
	living, err := t.fx.Living(ctx)
	if err != nil {
		return fmt.Errorf("list coordinators: %w", err)
	}
	if t.living == nil || someGone(t.living, living) {
		if records, err = t.fx.List(ctx); err != nil {
			return fmt.Errorf("list records: %w", err)
		}
	}
	t.living = living
	for _, r := range records {
		if r.State != placement.Assigned || r.Owner == t.cfg.Instance {
			continue
		}
		if living[r.Owner] && time.Since(r.Created) < r.Request.Timeout()+t.cfg.Overdue {
			continue
		}
		from := r.Owner
		r.Owner, r.Updated = t.cfg.Instance, time.Now().UTC().Round(0)
		taken, err := t.fx.Update(ctx, r, t.fence)
		if errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) {
			continue // it is alive after all
		}
		if err != nil {
			return fmt.Errorf("take over %s: %w", r.ID, err)
		}
		t.cfg.Log.Info("placement taken over", "placement", r.ID, "from", from, "node", r.Node, "attempt", r.Attempt)
		t.fx.Resume(taken)
	}
	return nil
}

func someGone(before, now map[string]bool) bool {
	for who := range before {
		if !now[who] {
			return true
		}
	}
	return false
}
