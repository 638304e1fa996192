package worker

import (
	"context"
	"errors"
	"os"
	"regexp"

	"warmd/agent/runtime"
)

var generationRE = regexp.MustCompile(`^(.+)\.[0-9]+$`)

// EndForgotten ends what runtimes that are not installed any more keep ready: nobody
// would fork from their zygotes or place on their parked workers, and each holds the
// memory of a whole engine's imports. A generation with a placement is left alone.
func EndForgotten(ctx context.Context, cfg RuntimeConfig, installed func(name string) bool) {
	entries, _ := os.ReadDir(cfg.RunDir)
	seen := map[string]bool{}
	for _, e := range entries {
		m := generationRE.FindStringSubmatch(e.Name())
		if m == nil || seen[m[1]] || installed(m[1]) || runtime.CheckName(m[1]) != nil {
			continue
		}
		seen[m[1]] = true
		cfg.Manifest = runtime.Manifest{Name: m[1], Kind: runtime.KindExec}
		NewRuntime(cfg).endIdle(ctx)
	}
}

// endIdle ends generations without a placement. It is for a runtime that does not run.
func (r *Runtime) endIdle(ctx context.Context) {
	for _, n := range r.generations() {
		recs, busy := r.holds(ctx, n)
		if busy {
			r.log.Warn("runtime is not installed any more, what it serves goes on", "generation", n)
			continue
		}
		if err := r.endGeneration(ctx, n, recs); err != nil {
			r.log.Warn("runtime is not installed any more, and its zygote does not end", "generation", n, "err", err)
			continue
		}
		r.log.Info("runtime is not installed any more, its zygote was ended", "generation", n, "parked", len(recs))
	}
}

// holds lists the living workers of a generation, and whether one is more than parked.
func (r *Runtime) holds(ctx context.Context, n int) (recs []Record, busy bool) {
	known := map[string]Record{}
	for _, rec := range r.onDisk(ctx, n) {
		known[rec.ID] = rec
	}
	for _, kid := range r.askAfresh(ctx, n) {
		known[kid.Worker] = r.merge(known[kid.Worker], n, kid)
	}
	for _, rec := range known {
		if !rec.Living() {
			continue
		}
		if !rec.Cold {
			r.askPair(ctx, &rec)
		}
		busy = busy || rec.Cold || rec.Placement != "" || rec.State != Warm
		recs = append(recs, rec)
	}
	return recs, busy
}

// endGeneration asks the launcher first: systemd ends a unit with all that is in it.
func (r *Runtime) endGeneration(ctx context.Context, n int, recs []Record) error {
	u := r.unit(n, "")
	if err := r.cfg.Launcher.Stop(ctx, u); err != nil {
		return err
	}
	for _, rec := range recs {
		if !r.extinguish(ctx, n, rec.living(), rec.group()) {
			return ctx.Err()
		}
	}
	zygote, runs := listener(u.Socket)
	if runs {
		err := withZygote(ctx, u.Socket, func(c *conn) error { return c.stopZygote(ctx) })
		if !awaitAll(ctx, []Proc{zygote}, discoverTime) || zygote.Alive() {
			return errors.Join(errors.New("it still runs"), err)
		}
	}
	return os.RemoveAll(r.genDir(n))
}
