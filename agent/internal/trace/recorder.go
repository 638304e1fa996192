// Package trace records how each start went: which phase took how long, which of
// them were over before the request came, and in which process.
//
// Two sources meet in one trace. The agent tells its own phases (fork, attach,
// bind, first token) and those that parked workers report. The engine tells its
// start-up spans over OpenTelemetry: vLLM does that unpatched, in a stock start as
// in a parked one, when its environment names an OTLP endpoint and a parent span
// ([Active.Env]). The [Recorder] is that endpoint, on loopback.
//
//	Begin --> open --Ready, Fail--> ended --10 s, or Run's end--> finished
//
// An ended trace is on disk at once, and takes late spans until it is finished:
// exporters send in batches. Then it is handed to Options.OnFinish and never
// changes again.
//
// Nothing here can hold up a start: Begin, Phase, Ready and Fail take a mutex that
// is never held over I/O, and cost microseconds. Only [Recorder.Run] writes files.
// Traces are for people: a crash may lose the last ones, and costs nothing else.
//
// Reading order: recorder.go, active.go, family.go, receiver.go, decode.go,
// history.go, stats.go.
package trace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"warmd/placement"
)

// lateWindow is how long spans may still join a trace that has ended. vLLM's
// exporter sends every 5 s unless told otherwise.
const lateWindow = 10 * time.Second

// Bounds of what one host's engines can make us hold.
const (
	maxOpen   = 1024 // traces that are not finished
	maxPhases = 1024 // of one trace
	maxText   = 128  // bytes of a name
)

// Options of New.
type Options struct {
	// Dir keeps the history, one file per trace; empty keeps it in memory only.
	Dir string
	// Keep is how many traces are kept (default 500), MaxBytes how many bytes of
	// them (default 16 MiB): the oldest go first.
	Keep     int
	MaxBytes int64
	// Addr is where engines send spans: a loopback address (default 127.0.0.1:0).
	Addr string
	Log  *slog.Logger
	// OnFinish sees each finished trace, one at a time, off the path of any start.
	OnFinish func(placement.Trace)
	// OnSpan sees each phase that an engine sent, as it comes: the progress of a
	// cold start. It must not block, and several may be called at once.
	OnSpan func(placementID string, p placement.Phase)
}

// Recorder is the traces of one agent.
type Recorder struct {
	opt      Options
	listener net.Listener
	slots    chan struct{} // one per body that is being read
	kick     chan struct{} // the keeper has something to write

	mu       sync.Mutex
	open     []*Active // oldest first: open and ended
	families map[traceID]*family
	history  *history
	lost     int // spans of a known trace that found no place
}

// New reads the history and opens the OTLP listener, so that Endpoint is known; it
// starts nothing. The caller owes Run or Close.
func New(opt Options) (*Recorder, error) {
	opt.Addr = cmp.Or(opt.Addr, "127.0.0.1:0")
	host, _, err := net.SplitHostPort(opt.Addr)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("trace address %q: it must be a loopback address such as 127.0.0.1:0, spans are not authenticated", opt.Addr)
	}
	r, err := newRecorder(opt)
	if err != nil {
		return nil, err
	}
	if r.listener, err = net.Listen("tcp", opt.Addr); err != nil {
		return nil, fmt.Errorf("listen for spans: %w", err)
	}
	return r, nil
}

func newRecorder(opt Options) (*Recorder, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Keep <= 0 {
		opt.Keep = 500
	}
	if opt.MaxBytes <= 0 {
		opt.MaxBytes = 16 << 20
	}
	h, err := openHistory(opt.Dir, opt.Keep, opt.MaxBytes, opt.Log)
	if err != nil {
		return nil, err
	}
	return &Recorder{
		opt: opt, history: h, families: map[traceID]*family{},
		slots: make(chan struct{}, maxBodies), kick: make(chan struct{}, 1),
	}, nil
}

// Endpoint is where engines send spans: the whole URL, as vLLM wants it.
func (r *Recorder) Endpoint() string { return "http://" + r.listener.Addr().String() + tracesPath }

// Close gives the listener back when Run is never called.
func (r *Recorder) Close() error { return r.listener.Close() }

// Run receives spans and keeps the history until ctx ends; then it finishes every
// trace that has ended, and drops the ones that go on: their placements do, too.
func (r *Recorder) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.receive(ctx) })
	g.Go(func() error { r.keepHistory(ctx); return nil })
	return g.Wait()
}

// keepHistory writes what has ended and finishes what is old enough. It is the
// only writer of files, and of r.history.
func (r *Recorder) keepHistory(ctx context.Context) {
	for {
		next := r.settle(time.Now(), false)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			r.settle(time.Now(), true)
			return
		case <-r.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// settle writes each ended trace that changed, finishes those whose time is over
// (all of them when this is the end), and says when to come again.
func (r *Recorder) settle(now time.Time, end bool) time.Duration {
	type job struct {
		name     string
		trace    placement.Trace
		write    bool
		finished bool
	}
	next := time.Hour
	var jobs []job
	r.mu.Lock()
	r.open = slices.DeleteFunc(r.open, func(a *Active) bool {
		if a.ended.IsZero() {
			return false
		}
		left := a.ended.Add(lateWindow).Sub(now)
		finished := end || left <= 0
		if a.dirty || finished {
			jobs = append(jobs, job{a.name, a.snapshot(), a.dirty, finished})
			a.dirty = false
		}
		if finished {
			r.leave(a)
		} else {
			next = min(next, left)
		}
		return finished
	})
	r.mu.Unlock()
	for _, j := range jobs {
		if j.write {
			size := r.history.write(j.name, j.trace)
			r.mu.Lock()
			gone := r.history.add(j.name, j.trace, size)
			r.mu.Unlock()
			r.history.remove(gone)
		}
		if j.finished && r.opt.OnFinish != nil {
			r.opt.OnFinish(j.trace)
		}
	}
	return next
}

// wake tells the keeper to look. It never blocks.
func (r *Recorder) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Get finds the newest trace of a placement, or the one of a trace id.
func (r *Recorder) Get(id string) (placement.Trace, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range slices.Backward(r.open) {
		if a.head.Placement == id || a.head.TraceID == id {
			return a.snapshot(), true
		}
	}
	for _, it := range slices.Backward(r.history.items) {
		if it.ok() && (it.trace.Placement == id || it.trace.TraceID == id) {
			return it.trace, true
		}
	}
	return placement.Trace{}, false
}

// List is every kept trace, newest first.
func (r *Recorder) List() []placement.Trace {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []placement.Trace{}
	open := map[string]bool{}
	for _, a := range slices.Backward(r.open) {
		open[a.name] = true
		out = append(out, a.snapshot())
	}
	for _, it := range slices.Backward(r.history.items) {
		if it.ok() && !open[it.name] {
			out = append(out, it.trace)
		}
	}
	slices.SortStableFunc(out, func(a, b placement.Trace) int { return b.Begin.Compare(a.Begin) })
	return out
}

// Lost counts spans of our traces that found no place since New.
func (r *Recorder) Lost() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// errBody is a body that is not OTLP.
var errBody = errors.New("not an OTLP trace request")
