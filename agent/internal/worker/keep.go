package worker

import (
	"context"
	"math/rand/v2"
	"time"
)

// keep starts a zygote whenever there is none that is current. One that was up
// for a while is replaced at once; one that keeps failing, ever more slowly.
func (r *Runtime) keep(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		changed := r.waiter()
		r.retire()
		g, closing := r.current(r.cfg.Manifest.Kind)
		if g == nil && !closing {
			var wasUp bool
			failures, wasUp = r.countFailures(failures)
			if !r.backOff(ctx, failures, wasUp) {
				continue // Shutdown was called, or ctx ended
			}
			if _, err := r.launch(ctx, r.cfg.Manifest.Kind); err != nil {
				failures++
				r.fail(err)
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// Lives shorter than this count as failures in a row.
const goodLife = 10 * time.Second

// countFailures takes dead generations of our kind out of the list and judges
// their lives.
func (r *Runtime) countFailures(failures int) (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wasUp := false
	for n, g := range r.gens {
		if g.state != genGone {
			continue
		}
		delete(r.gens, n)
		if g.kind != r.cfg.Manifest.Kind || !g.launched {
			continue
		}
		r.problem = g.problem
		wasUp = wasUp || !g.upSince.IsZero()
		if !g.upSince.IsZero() && time.Since(g.upSince) > goodLife {
			failures = 0
		} else {
			failures++
		}
	}
	return failures, wasUp
}

// backOff waits as long as failures in a row demand: nothing for the first one of
// a zygote that was up, then 0.5 s doubling to 30 s, give or take a fifth. It
// reports whether to go on.
func (r *Runtime) backOff(ctx context.Context, failures int, wasUp bool) bool {
	if failures == 0 || (failures == 1 && wasUp) {
		return ctx.Err() == nil
	}
	delay := min(30*time.Second, 500*time.Millisecond<<min(failures-1, 10))
	delay += time.Duration((rand.Float64() - 0.5) * 0.4 * float64(delay))
	r.setDown(true)
	defer r.setDown(false)
	t := time.NewTimer(delay)
	defer t.Stop()
	for {
		changed := r.waiter()
		r.mu.Lock()
		closing := r.closing
		r.mu.Unlock()
		if closing {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		case <-changed:
		}
	}
}

func (r *Runtime) setDown(down bool) {
	r.mu.Lock()
	r.down = down
	r.mu.Unlock()
	r.notify()
}

func (r *Runtime) fail(err error) {
	r.log.Error("zygote does not start", "err", err)
	r.mu.Lock()
	r.problem = err.Error()
	r.mu.Unlock()
	r.notify()
}
