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
// An open trace is on disk within a quarter of a second, with what is known, and is
// written again as phases come: when the agent is killed, the next one goes on with
// it ([Recorder.Resume]), and the engine, which knows one address for its whole life,
// finds that agent on the same port. An ended trace is on disk at once, and takes late
// spans until it is finished: exporters send in batches. Then it is handed to
// Options.OnFinish and to the collector, if there is one, and never changes again.
//
// Nothing here can hold up a start: Begin, Phase, Ready and Fail take a mutex that
// is never held over I/O, and cost microseconds. Only [Recorder.Run] writes files and
// sends to the collector. Traces are for people: nothing is synced, a power cut may
// lose the last ones, and costs nothing else.
//
// Reading order: recorder.go, active.go, family.go, history.go, port.go, export.go.
// What reads spans is [warmd/agent/api/otlp].
package trace

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"warmd/agent/api/otlp"
	"warmd/placement"
)

// lateWindow is how long spans may still join a trace that has ended. vLLM's
// exporter sends every 5 s unless told otherwise.
const lateWindow = 10 * time.Second

// saveDelay is how long what is new of an open trace may be missing from its file.
const saveDelay = 250 * time.Millisecond

// Bounds of what one host's engines can make us hold.
const (
	maxOpen   = 1024 // traces that are not finished
	maxPhases = 1024 // of one trace
)

// Options of New.
type Options struct {
	// Dir keeps the history, one file per trace; empty keeps it in memory only.
	Dir string
	// Keep is how many traces are kept (default 500), MaxBytes how many bytes of
	// them (default 16 MiB): the oldest go first.
	Keep     int
	MaxBytes int64
	// Addr is where engines send spans: a loopback address. The default is any port,
	// and with Dir the one of the last time, for the engines that know it.
	Addr string
	// Collector is the URL that finished traces are sent to in OTLP over HTTP, empty for
	// none.
	Collector string
	Log       *slog.Logger
	// OnFinish sees each finished trace, one at a time, off the path of any start.
	OnFinish func(placement.Trace)
	// OnSpan sees each phase that an engine sent, as it comes: the progress of a
	// cold start. It must not block, and several may be called at once.
	OnSpan func(placementID string, p placement.Phase)
}

// Recorder is the traces of one agent.
type Recorder struct {
	opt      Options
	receiver *otlp.Receiver
	exporter *exporter     // nil without a collector
	kick     chan struct{} // the keeper has something to write

	mu       sync.Mutex
	open     []*Active // oldest first: open and ended
	families map[otlp.TraceID]*family
	history  *history
	lost     int // spans of a known trace that found no place
}

// New reads the history and opens the OTLP listener, so that Endpoint is known; it
// starts nothing. The caller owes Run or Close.
func New(opt Options) (*Recorder, error) {
	r, err := newRecorder(opt)
	if err != nil {
		return nil, err
	}
	if opt.Collector != "" {
		if r.exporter, err = newExporter(opt.Collector, r.opt.Log); err != nil {
			return nil, err
		}
	}
	if r.receiver, err = listen(r.opt, r.received); err != nil {
		return nil, err
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
		opt: opt, history: h, families: map[otlp.TraceID]*family{}, kick: make(chan struct{}, 1),
	}, nil
}

// Endpoint is where engines send spans: the whole URL, as vLLM wants it.
func (r *Recorder) Endpoint() string { return r.receiver.Endpoint() }

// Close gives the listener back when Run is never called.
func (r *Recorder) Close() error { return r.receiver.Close() }

// Run receives spans and keeps the history until ctx ends; then it finishes every
// trace that has ended, and leaves the ones that go on to the next agent: their
// placements go on, too.
func (r *Recorder) Run(ctx context.Context) error {
	stop := r.exporter.start()
	defer stop() // when the last traces are finished
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.receiver.Run(ctx) })
	g.Go(func() error { r.keepHistory(ctx); return nil })
	return g.Wait()
}

// received gives spans to their traces, and tells the progress.
func (r *Recorder) received(spans []otlp.Span) {
	births := map[int]time.Time{} // before the mutex: it is never held over I/O
	for _, s := range spans {
		if _, asked := births[s.PID]; !asked && s.PID != 0 && len(births) < maxProcs {
			births[s.PID], _ = otlp.Birth(s.PID) // of one that is gone nothing is known
		}
	}
	for _, j := range r.take(spans, births) {
		if r.opt.OnSpan != nil {
			r.opt.OnSpan(j.placement, j.phase)
		}
	}
}

// maxProcs bounds the processes that one batch may make us look at.
const maxProcs = 64

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

// settle writes each trace whose file is behind, finishes those whose time is over
// (all that have ended when this is the end), and says when to come again.
func (r *Recorder) settle(now time.Time, end bool) time.Duration {
	type job struct {
		name     string
		trace    placement.Trace
		write    bool
		open     bool
		finished bool
	}
	next := time.Hour
	var jobs []job
	r.mu.Lock()
	r.open = slices.DeleteFunc(r.open, func(a *Active) bool {
		ended := !a.ended.IsZero()
		left := a.ended.Add(lateWindow).Sub(now)
		finished := ended && (end || left <= 0)
		write := a.dirty && (ended || end || !now.Before(a.save))
		if write || finished {
			jobs = append(jobs, job{a.name, a.snapshot(), write, !ended, finished})
			a.dirty = a.dirty && !write
		}
		switch {
		case finished:
			r.leave(a)
			return true
		case ended:
			next = min(next, left)
		case a.dirty:
			next = min(next, a.save.Sub(now))
		}
		return false
	})
	r.mu.Unlock()
	for _, j := range jobs {
		if j.write {
			it := r.history.write(j.name, j.trace, j.open)
			r.mu.Lock()
			gone := r.history.add(it)
			r.mu.Unlock()
			r.history.remove(gone)
		}
		if j.finished {
			r.exporter.offer(j.trace)
			if r.opt.OnFinish != nil {
				r.opt.OnFinish(j.trace)
			}
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
	for _, a := range slices.Backward(r.open) {
		if a.head.Placement == id || a.head.TraceID == id {
			t := a.snapshot()
			r.mu.Unlock()
			return t, true
		}
	}
	items := slices.Clone(r.history.items)
	r.mu.Unlock()
	for _, it := range slices.Backward(items) {
		if it.placement == id || it.traceID == id {
			if t, ok := r.history.trace(it); ok {
				return t, true
			}
		}
	}
	return placement.Trace{}, false
}

// List is every kept trace, newest first.
func (r *Recorder) List() []placement.Trace {
	r.mu.Lock()
	out := []placement.Trace{}
	open := map[string]bool{}
	for _, a := range slices.Backward(r.open) {
		open[a.name] = true
		out = append(out, a.snapshot())
	}
	items := slices.Clone(r.history.items)
	r.mu.Unlock()
	for _, it := range slices.Backward(items) {
		if open[it.name] {
			continue
		}
		if t, ok := r.history.trace(it); ok {
			out = append(out, t)
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
