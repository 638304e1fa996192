package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"warmd/agent/runtime"
)

// DeviceEnv is what a forked pair must know of its device.
type DeviceEnv struct {
	Kind    string // cpu, cuda
	ID      string
	Visible string // CUDA_VISIBLE_DEVICES
}

// ForkSpec names a pair to be parked.
type ForkSpec struct {
	ID     string
	Device DeviceEnv
	Env    map[string]string // added to the zygote's environment in both halves
}

// SpawnSpec is a cold start: a stock engine, or an exec runtime's command.
type SpawnSpec struct {
	ID   string
	Argv []string
	Env  []string // the whole environment, K=V
	Dir  string   // working directory; default: the worker's own
	// Device, Placement and Attempt go into the worker's record.
	Device    string
	Placement string
	Attempt   int
}

// startTime bounds what a zygote needs to start a process: milliseconds.
const startTime = 10 * time.Second

// Fork parks a pair and returns when both halves are warm. It waits for a zygote
// that starts; it fails at once with ErrNoZygote when that is down. When it fails,
// or ctx ends, nothing of the pair is left.
func (r *Runtime) Fork(ctx context.Context, spec ForkSpec) (*Worker, error) {
	if r.cfg.Manifest.Kind != runtime.KindVLLM {
		return nil, fmt.Errorf("fork worker %s: %w: runtime %s is of kind %s", spec.ID, ErrUnsupported, r.name, r.cfg.Manifest.Kind)
	}
	if err := checkID(spec.ID); err != nil {
		return nil, fmt.Errorf("fork worker %q: %w", spec.ID, err)
	}
	g, c, err := r.hold(ctx, r.cfg.Manifest.Kind)
	if err != nil {
		return nil, fmt.Errorf("fork worker %s: %w", spec.ID, err)
	}
	defer r.release(g)
	if err := checkSocketPath(r.halfSocket(g.n, spec.ID, roleEngine)); err != nil {
		return nil, fmt.Errorf("fork worker %s: %w", spec.ID, err)
	}
	w, err := r.register(Record{
		ID: spec.ID, Runtime: r.name, Generation: g.n, Device: spec.Device.ID, Boot: bootID(), State: Spawning,
		Log: r.logPath(spec.ID), Since: time.Now(),
	})
	if err != nil {
		return nil, err
	}
	if err := w.forkBoth(ctx, c, spec); err != nil {
		return nil, w.undo(fmt.Errorf("fork worker %s: %w", spec.ID, err))
	}
	if err := w.await(ctx, Warm); err != nil {
		return nil, w.undo(fmt.Errorf("fork worker %s: %w", spec.ID, err))
	}
	return w, nil
}

// forkBoth asks for engine and API at once. It does not follow ctx: a fork that
// was asked for must be heard of, or nobody would end it.
func (w *Worker) forkBoth(ctx context.Context, c *conn, spec ForkSpec) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
	defer cancel()
	roles := []string{roleEngine, roleAPI}
	errs := make(chan error, len(roles))
	for _, role := range roles {
		go func() {
			p, err := c.fork(ctx, forkRequest{
				Worker: w.id, Role: role, Socket: w.rt.halfSocket(w.gen, w.id, role), Log: w.log, Env: spec.Env,
				Spec: forkDevice{spec.Device.Kind, spec.Device.Visible},
			})
			if err != nil {
				p = w.unheard(role)
			}
			if p.PID > 0 {
				w.post(func() { w.has(role, p) })
			}
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs)
}

// unheard finds a half whose zygote was killed between the fork and the answer: it
// listens since before it was forked, and nobody else would ever end it.
func (w *Worker) unheard(role string) Proc {
	ctx, cancel := context.WithTimeout(context.Background(), discoverTime)
	defer cancel()
	h, err := askHalf(ctx, w.rt.halfSocket(w.gen, w.id, role))
	if err != nil || h.Worker != w.id || h.Role != role {
		return Proc{}
	}
	return h.Proc
}

// Spawn starts a cold worker and returns when its process runs. It needs no warm
// zygote: when that is down or still importing, a zygote that only spawns is
// started, so that a cold start works exactly when warm ones do not.
func (r *Runtime) Spawn(ctx context.Context, spec SpawnSpec) (*Worker, error) {
	if err := checkID(spec.ID); err != nil {
		return nil, fmt.Errorf("spawn worker %q: %w", spec.ID, err)
	}
	g, c, err := r.holdSpawner(ctx)
	if err != nil {
		return nil, fmt.Errorf("spawn worker %s: %w", spec.ID, err)
	}
	defer r.release(g)
	w, err := r.register(Record{
		ID: spec.ID, Runtime: r.name, Generation: g.n, Device: spec.Device, Cold: true, Boot: bootID(), State: Spawning,
		Placement: spec.Placement, Attempt: spec.Attempt, Log: r.logPath(spec.ID), Since: time.Now(),
	})
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, kv := range spec.Env {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	dir := spec.Dir
	if dir == "" {
		dir = w.dir()
	}
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
	defer cancel()
	p, err := c.spawn(ask, spawnRequest{Worker: w.id, Role: roleServe, Argv: spec.Argv, Env: env, Log: w.log, Cwd: dir})
	if err != nil {
		return nil, w.undo(fmt.Errorf("spawn worker %s: %w", spec.ID, err))
	}
	w.post(func() {
		w.has(roleServe, p)
		w.move(Loading)
	})
	if err := w.await(ctx, Loading); err != nil {
		return nil, w.undo(fmt.Errorf("spawn worker %s: %w", spec.ID, err))
	}
	return w, nil
}

// await waits until the worker has come as far as want. It leaves the events to
// the caller of Fork, who gets all of them.
func (w *Worker) await(ctx context.Context, want State) error {
	for {
		res := make(chan bool, 1)
		changed := make(chan struct{})
		if !w.post(func() {
			res <- w.state == want || w.state == Loading || w.state == Serving
			w.onMove = func() { close(changed); w.onMove = nil }
		}) {
			return w.obituary()
		}
		select {
		case there := <-res:
			if there {
				return nil
			}
		case <-w.ended:
			return w.obituary()
		}
		select {
		case <-changed:
		case <-w.ended:
			return w.obituary()
		case <-ctx.Done():
			return fmt.Errorf("not %s in time: %w", want, ctx.Err())
		}
	}
}

// obituary is why a worker ended before it was any use.
func (w *Worker) obituary() error {
	select {
	case <-w.done:
	default:
		return ErrNotRunning
	}
	msg := w.Info().Error
	if last := w.LogTail(5); last != "" {
		msg += "\nlast log lines:\n" + last
	}
	return errors.New(msg)
}

// undo ends what was started of a worker; err stays the reason.
func (w *Worker) undo(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	if stopErr := w.Stop(ctx, 0); stopErr != nil && !errors.Is(stopErr, ErrNotRunning) {
		return errors.Join(err, stopErr)
	}
	if i := w.Info(); i.EnginePID == 0 && i.APIPID == 0 {
		_ = os.Remove(w.log) // empty: nothing ever ran
	}
	return err
}

// hold waits for the current generation of a kind to be up and keeps it from
// being retired until release.
func (r *Runtime) hold(ctx context.Context, kind string) (*generation, *conn, error) {
	for {
		changed := r.waiter()
		g, closing := r.current(kind)
		r.mu.Lock()
		switch {
		case closing || r.over || r.ctx != nil && r.ctx.Err() != nil:
			r.mu.Unlock()
			return nil, nil, ErrNotRunning
		case g != nil && g.conn != nil:
			c := g.conn
			g.holds++
			r.mu.Unlock()
			return g, c, nil
		case g == nil && r.down:
			problem := r.problem
			r.mu.Unlock()
			return nil, nil, fmt.Errorf("%w: %s", ErrNoZygote, problem)
		}
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%w yet: %w", ErrNoZygote, ctx.Err())
		}
	}
}

// holdSpawner takes the current generation if it is up, else one of kind exec.
func (r *Runtime) holdSpawner(ctx context.Context) (*generation, *conn, error) {
	kind := r.cfg.Manifest.Kind
	if kind == runtime.KindExec {
		return r.hold(ctx, kind)
	}
	if err := r.lookedAround(ctx); err != nil { // a zygote that lives may be about to answer
		return nil, nil, fmt.Errorf("%w yet: %w", ErrNoZygote, err)
	}
	r.spawner.Lock()
	defer r.spawner.Unlock()
	if r.Status().Zygote == ZygoteUp {
		return r.hold(ctx, kind)
	}
	g, closing := r.current(runtime.KindExec)
	if closing {
		return nil, nil, ErrNotRunning
	}
	if g == nil {
		var err error
		if g, err = r.launch(ctx, runtime.KindExec); err != nil {
			return nil, nil, err
		}
	}
	select {
	case <-g.first:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("%w yet: %w", ErrNoZygote, ctx.Err())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.conn == nil {
		return nil, nil, fmt.Errorf("%w: %s", ErrNoZygote, g.problem)
	}
	g.holds++
	return g, g.conn, nil
}

func (r *Runtime) release(g *generation) {
	r.mu.Lock()
	g.holds--
	r.mu.Unlock()
	r.notify() // it may retire now
}
