package worker

import (
	"context"
	"fmt"
	"time"
)

// adoptTime bounds the wait for a half's hello, and for the end of one whose other half
// is gone. One that is busy keeps the state of its record until it answers.
const adoptTime = time.Second

// Adopt takes over a worker that an earlier agent started: what Worker.Record
// returned, or an element of Found. Each process is matched by pid, start time and
// the life of the host. When one is gone the rest is killed, as the pair rule
// demands, and once nothing is left the error wraps ErrLost.
func (r *Runtime) Adopt(ctx context.Context, rec Record) (*Worker, error) {
	if err := checkID(rec.ID); err != nil {
		return nil, fmt.Errorf("adopt worker %q: %w", rec.ID, err)
	}
	if rec.Runtime != r.name {
		return nil, fmt.Errorf("adopt worker %s: it belongs to runtime %q, this is %q", rec.ID, rec.Runtime, r.name)
	}
	if err := r.lookedAround(ctx); err != nil { // zygotes that can kill for us are known then
		return nil, fmt.Errorf("adopt worker %s: %w", rec.ID, err)
	}
	living := rec.living()
	if len(living) < len(rec.procs()) {
		end, cancel := context.WithTimeout(ctx, adoptTime+trackerTime)
		defer cancel()
		if !r.extinguish(end, rec.Generation, living, rec.group()) {
			return nil, fmt.Errorf("adopt worker %s: a half of it is gone, and the rest cannot be killed yet: %w", rec.ID, end.Err())
		}
		return nil, fmt.Errorf("adopt worker %s: %w: %d of its %d processes run", rec.ID, ErrLost, len(living), len(rec.procs()))
	}
	if !rec.Cold {
		r.askPair(ctx, &rec)
	} else if rec.State == Spawning {
		rec.State = Loading
	}
	w, err := r.register(rec)
	if err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	w.post(func() {
		for role, p := range rec.procs() {
			w.has(role, p)
		}
	})
	r.log.Info("worker adopted", "worker", rec.ID, "state", rec.State, "placement", rec.Placement)
	return w, nil
}

// askPair brings a record up to date with what its halves say.
func (r *Runtime) askPair(ctx context.Context, rec *Record) {
	ctx, cancel := context.WithTimeout(ctx, adoptTime)
	defer cancel()
	type word struct {
		h   halfHello
		err error
	}
	words := make(chan word, 2)
	for role, p := range rec.procs() {
		go func() {
			h, err := askHalf(ctx, r.halfSocket(rec.Generation, rec.ID, role))
			if err == nil && h.Proc != p {
				err = fmt.Errorf("process %v answers", h.Proc)
			}
			words <- word{h, err}
		}()
	}
	low, high, asleep := 99, 0, false
	for range 2 {
		w := <-words
		if w.err != nil {
			r.log.Warn("half of an adopted worker does not answer, its record stands", "worker", rec.ID, "err", w.err)
			if rec.State == Spawning {
				rec.State = Loading // it cannot be claimed, and may be stopped
			}
			return
		}
		low, high, asleep = min(low, rank[w.h.State]), max(high, rank[w.h.State]), asleep || w.h.State == Sleeping
		if w.h.Placement != "" {
			rec.Placement, rec.Attempt = w.h.Placement, w.h.Attempt
		}
	}
	switch {
	case high >= rank[Draining]:
		rec.State = Draining
	case low == rank[Serving] && asleep:
		rec.State = Sleeping
	case low == rank[Serving]:
		rec.State = Serving
	case high > rank[Warm]:
		rec.State = Loading
	case low == rank[Warm]:
		rec.State = Warm
	}
}
