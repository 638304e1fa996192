package device

import (
	"context"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"warmd/placement"
)

// Config is what a device's loop is made of. All fields but Trace, Resume, Observe, Emit,
// OnChange and the timings are needed.
type Config struct {
	Node, ID, Kind, Name string
	TotalBytes           int64
	Slots                int
	Draining             bool
	Warm                 map[string]int // parked workers wanted, by runtime; later the loop's own
	Runtimes             map[string]Runtime
	Memory               Memory
	Journal              Journal
	Ports                *Ports
	// NewID makes worker ids.
	NewID func() string
	// Probe returns when a token came out of the endpoint.
	Probe func(ctx context.Context, base, model string) error
	// Trace begins the trace of a start.
	Trace func(head placement.Trace, traceparent string, at time.Time) Trace
	// Resume goes on with the trace of a start that an earlier agent accepted, nil when
	// there is none.
	Resume func(placementID string) Trace
	// Observe counts; Emit tells people; OnChange says that there is a new View.
	Observe  Observer
	Emit     func(placement.Event)
	OnChange func()
	// Capacity is the node's capacity, for the lines of a start.
	Capacity func() placement.Capacity
	Log      *slog.Logger
	Timings  Timings
}

// Timings are the waits of the loop. The zero value of a field takes its default.
type Timings struct {
	Follow   time.Duration // nobody follows a start: how long until it is given up; 30 s
	Fork     time.Duration // bound of one fork; 2 min, a zygote may still be importing
	Stop     time.Duration // bound of a kill on top of the grace; 30 s
	Prove    time.Duration // how long memory may take to come back; 10 s
	Retry    time.Duration // first pause after maxFails failed forks, doubled up to 1 min; 1 s
	Reprove  time.Duration // how often a quarantined slot is looked at again; 5 s
	Measure  time.Duration // how often free memory is measured; 5 s
	Settled  time.Duration // a parked worker that dies younger counts as a failed fork; 10 s
	MaxRetry time.Duration // 1 min
}

func (t Timings) withDefaults() Timings {
	for _, f := range []struct {
		d   *time.Duration
		def time.Duration
	}{
		{&t.Follow, 30 * time.Second}, {&t.Fork, 2 * time.Minute}, {&t.Stop, 30 * time.Second},
		{&t.Prove, 10 * time.Second}, {&t.Retry, time.Second}, {&t.Reprove, 5 * time.Second},
		{&t.Measure, 5 * time.Second}, {&t.Settled, 10 * time.Second}, {&t.MaxRetry, time.Minute},
	} {
		if *f.d <= 0 {
			*f.d = f.def
		}
	}
	return t
}

// Device is the loop of one device. Fields below loop are the loop's own: only
// functions that run on it touch them.
type Device struct {
	cfg  Config
	view atomic.Pointer[View]
	free atomic.Int64 // bytes, as last measured

	msgs     chan func()
	poke     chan struct{}
	stopped  chan struct{}
	measured chan struct{}  // closed when the memory was measured for the first time, or could not be
	wg       sync.WaitGroup // forks, retirements, lives, strangers' watchers

	// loop
	ctx      context.Context
	busy     map[string]*life // by placement id; each holds one slot
	parked   []*parked
	strange  map[string]*stranger // by worker id; each holds one slot
	backoff  map[string]*backoff  // by runtime
	retry    *time.Timer
	draining bool
	fault    string // the device itself is unwell
}

// New makes a device; nothing runs until [Device.Run].
func New(cfg Config) *Device {
	cfg.Timings = cfg.Timings.withDefaults()
	if cfg.Observe == nil {
		cfg.Observe = silent{}
	}
	if cfg.Emit == nil {
		cfg.Emit = func(placement.Event) {}
	}
	if cfg.OnChange == nil {
		cfg.OnChange = func() {}
	}
	if cfg.Trace == nil {
		cfg.Trace = func(placement.Trace, string, time.Time) Trace { return noTrace{} }
	}
	d := &Device{
		cfg: cfg, msgs: make(chan func(), 64), poke: make(chan struct{}, 1), stopped: make(chan struct{}), measured: make(chan struct{}),
		draining: cfg.Draining, busy: make(map[string]*life), strange: make(map[string]*stranger), backoff: make(map[string]*backoff),
	}
	d.cfg.Log = cfg.Log.With("device", cfg.ID)
	d.publish()
	return d
}

// ID names the device.
func (d *Device) ID() string { return d.cfg.ID }

// Run is the loop. When ctx ends it returns once its goroutines have let go of
// their workers; no worker is stopped because of it.
func (d *Device) Run(ctx context.Context) error {
	d.ctx = ctx
	d.retry = time.NewTimer(time.Hour)
	d.retry.Stop()
	d.wg.Go(func() { d.measureEvery(ctx) })
	for _, l := range d.busy { // adopted before Run
		l.ctx, l.cancel = context.WithCancelCause(ctx)
		d.wg.Go(l.run)
	}
	for _, p := range d.parked {
		d.wg.Go(p.watch)
		if p.state == Retiring {
			d.end(p)
		}
	}
	for _, s := range d.strange {
		d.wg.Go(s.watch)
	}
	defer func() {
		close(d.stopped)
		d.wg.Wait()
	}()
	d.reconcile()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-d.msgs:
			f()
		case <-d.poke:
		case <-d.retry.C:
		}
		d.reconcile()
	}
}

// post runs f on the loop; after the loop has ended it does nothing.
func (d *Device) post(f func()) {
	select {
	case d.msgs <- f:
	case <-d.stopped:
	}
}

// ask runs f on the loop and waits until what came of it is published.
func (d *Device) ask(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	select {
	case d.msgs <- func() { f(); d.reconcile(); close(ran) }:
	case <-d.stopped:
		return errStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-ran:
		return nil
	case <-d.stopped:
		select {
		case <-ran:
			return nil
		default: // the loop has ended: it will never run
		}
		return errStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var errStopped = placement.Errorf(placement.CodeUnavailable, "the agent is shutting down").WithHint("call again when it is back")

// Poke makes the loop look again, because a zygote came or went. It never waits.
func (d *Device) Poke() {
	select {
	case d.poke <- struct{}{}:
	default:
	}
}

// Ping returns nil once the loop has taken a message from its queue: it turns. It
// answers for the watchdog, so ctx should be short.
func (d *Device) Ping(ctx context.Context) error { return d.ask(ctx, func() {}) }

// Measured reports whether the device was looked at: its memory was measured, or
// the driver said why it cannot be.
func (d *Device) Measured() bool {
	select {
	case <-d.measured:
		return true
	default:
		return false
	}
}

// SetFault says why the device must not be used, empty when it is well again.
// What runs on it is left alone.
func (d *Device) SetFault(problem string) { d.post(func() { d.fault = problem }) }

// Drain makes the device refuse claims and give its parked workers up, or not.
func (d *Device) Drain(ctx context.Context, on bool) error {
	return d.ask(ctx, func() { d.draining = on })
}

// SetWarm says anew how many workers of each runtime are wanted parked. Those that are
// too many are retired; what is placed is left alone.
func (d *Device) SetWarm(warm map[string]int) { d.post(func() { d.cfg.Warm = warm }) }

// reconcile carries out the plan and publishes what came of it.
func (d *Device) reconcile() {
	var targets []Target
	var next time.Time
	for name, n := range d.cfg.Warm {
		rt := d.cfg.Runtimes[name]
		if rt == nil {
			continue
		}
		s := rt.Status()
		due := d.backoff[name].due()
		if at := d.lookAgain(name, due); n > 0 && !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
		targets = append(targets, Target{Runtime: name, Warm: n, Forkable: s.Zygote == "up" && s.Kind != "exec" && due.IsZero()})
	}
	sort.Slice(targets, func(i, j int) bool { return targets[i].Runtime < targets[j].Runtime })
	for _, a := range Plan(targets, d.have()) {
		if a.Fork != "" {
			d.fork(a.Fork)
		} else {
			d.retire(a.Retire)
		}
	}
	d.retry.Stop()
	if !next.IsZero() {
		d.retry.Reset(time.Until(next))
	}
	d.publish()
}

// lookAgain says when the loop must look at a runtime with failed forks again:
// when the next fork is due, or when a worker has lived long enough to say that
// the failures are over.
func (d *Device) lookAgain(runtime string, due time.Time) time.Time {
	if d.backoff[runtime] == nil || !due.IsZero() {
		return due
	}
	for _, p := range d.parked {
		if p.runtime != runtime || p.state != Warm {
			continue
		}
		settled := p.since.Add(d.cfg.Timings.Settled)
		if settled.After(time.Now()) {
			return settled
		}
		delete(d.backoff, runtime)
	}
	return time.Time{}
}

func (d *Device) emit(kind, id, worker, format string, args ...any) {
	e := placement.Event{
		At: time.Now(), Node: d.cfg.Node, Device: d.cfg.ID, Kind: kind,
		Placement: id, Worker: worker, Message: fmt.Sprintf(format, args...),
	}
	d.cfg.Log.Info(kind, "placement", id, "worker", worker, "what", e.Message)
	d.cfg.Emit(e)
}

// silent is the Observer of those who have none, noTrace their Trace.
type silent struct{}

func (silent) Started(placement.Tier, float64) {}
func (silent) Ended(string)                    {}

type noTrace struct{}

func (noTrace) Phase(string, string, time.Time, time.Duration) {}
func (noTrace) Env() map[string]string                         { return nil }
func (noTrace) Ready(time.Time)                                {}
func (noTrace) Fail(string)                                    {}
