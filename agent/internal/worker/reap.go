package worker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"
)

// trackerTime is what Python's resource tracker gets to unlink a dead worker's
// shared memory and end by itself, once all others are gone: that is when it begins.
const trackerTime = 2 * time.Second

// reap kills every process of the worker and posts when each is proven gone. It
// never gives up: a slot whose old worker may still hold the device is not free.
func (w *Worker) reap(ctx context.Context, roots []Proc, group string) {
	if w.rt.extinguish(ctx, w.gen, roots, group) {
		w.post(func() {
			w.reapers--
			w.reaped = w.reaping && w.reapers == 0
		})
	}
}

// extinguish kills roots and all that belongs to their sessions and cgroups, until a
// look at the process table finds none of them. False when ctx ended first.
func (r *Runtime) extinguish(ctx context.Context, gen int, roots []Proc, groups ...string) bool {
	var alone time.Time     // since when trackers are all that is left
	seen := map[Proc]bool{} // descendants keep their names when their parents are gone
	for round := 0; ; round++ {
		left := remaining(roots, groups, seen)
		if len(left) == 0 {
			return true
		}
		due := slices.DeleteFunc(slices.Clone(left), isTracker)
		switch {
		case len(due) > 0:
			alone = time.Time{}
		case alone.IsZero():
			alone = time.Now()
		case time.Since(alone) > trackerTime:
			due = left
		}
		var kills sync.WaitGroup // at once: a zygote that hangs must not cost its timeout per process
		for _, p := range due {
			kills.Go(func() {
				if err := r.signal(ctx, gen, p, syscall.SIGKILL); err != nil && !errors.Is(err, ErrGone) && round%20 == 0 {
					r.log.Error("process cannot be killed yet", "process", p, "err", err)
				}
			})
		}
		kills.Wait()
		if !awaitAll(ctx, left, min(250*time.Millisecond, 20*time.Millisecond<<min(round, 4))) {
			return false
		}
	}
}

// remaining lists what still lives of roots, their sessions, their cgroups and whatever
// was seen to belong to them before; roots first, a kill of those takes the group along.
func remaining(roots []Proc, groups []string, seen map[Proc]bool) (left []Proc) {
	for _, root := range roots {
		for _, p := range sessionMembers(root) {
			seen[p] = true
		}
	}
	for _, group := range groups {
		for _, p := range cgroupMembers(group) {
			seen[p] = true
		}
	}
	for p := range maps.Keys(seen) {
		if !p.Alive() {
			delete(seen, p)
			continue
		}
		left = append(left, p)
	}
	slices.SortFunc(left, func(a, b Proc) int {
		return btoi(slices.Contains(roots, b)) - btoi(slices.Contains(roots, a))
	})
	return left
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// awaitAll waits until all have ended, or for d. False when ctx ended.
func awaitAll(ctx context.Context, procs []Proc, d time.Duration) bool {
	wait, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for _, p := range procs {
		fd, err := p.open()
		if err != nil {
			continue
		}
		err = fd.wait(wait)
		fd.close()
		if err != nil {
			break
		}
	}
	return ctx.Err() == nil
}
