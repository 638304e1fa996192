package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"warmd/agent/runtime"
)

// RuntimeConfig is what a Runtime needs. All fields but Lines and OnChange are required.
type RuntimeConfig struct {
	Manifest  runtime.Manifest
	ScriptDir string // the unpacked Python side
	RunDir    string // sockets; short, and gone after a reboot at best
	LogDir    string
	Launcher  Launcher
	Log       *slog.Logger
	// Lines gets what placed workers print; nil keeps it in their files alone.
	Lines Lines
	// OnChange is called after Status may have changed, from any goroutine. It must
	// not block and must not call Run or Shutdown.
	OnChange func()
}

// The words of RuntimeStatus.Zygote.
const (
	ZygoteUp       = "up"
	ZygoteStarting = "starting"
	ZygoteDown     = "down"
)

// RuntimeStatus says whether warm starts can be had.
type RuntimeStatus struct {
	Zygote     string `json:"zygote"` // up, starting, down
	Problem    string `json:"problem,omitempty"`
	Generation int    `json:"generation,omitempty"`
	PID        int    `json:"pid,omitempty"`
}

// Errors that callers branch on.
var (
	ErrNotRunning  = errors.New("runtime is not running")
	ErrNoZygote    = errors.New("no zygote is up")
	ErrUnsupported = errors.New("runtime has no warm workers")
)

// Runtime keeps one zygote of a runtime up, the newest generation, and knows
// every worker of all generations.
type Runtime struct {
	cfg  RuntimeConfig
	name string
	log  *slog.Logger

	patience patience
	direct   func(Proc, syscall.Signal) error // signals by ourselves

	vllmPrint, execPrint func() string // fingerprints of today's zygotes

	found chan struct{} // closed when living generations have been looked for

	spawner sync.Mutex // held while a spawning zygote is looked for: one is enough

	launching sync.Mutex // held while a zygote is started; Shutdown comes before or after, never amid

	mu      sync.Mutex // guards what follows, and the generations' fields
	ctx     context.Context
	tasks   sync.WaitGroup // goroutines of Run; Add only while ctx is set and not over
	over    bool           // Run is ending: nothing new starts
	closing bool           // Shutdown was called: no zygote starts
	changed chan struct{}  // closed and replaced at every change
	gens    map[int]*generation
	workers map[string]*Worker
	down    bool   // between two starts of a zygote that fails
	problem string // why the last zygote is gone; "" once one is up
	lastGen int    // the highest number given out: a log is never another generation's, too
}

// NewRuntime starts nothing.
func NewRuntime(cfg RuntimeConfig) *Runtime {
	if cfg.OnChange == nil {
		cfg.OnChange = func() {}
	}
	r := &Runtime{
		patience: defaultPatience, direct: Proc.Signal,
		cfg: cfg, name: cfg.Manifest.Name, log: cfg.Log.With("runtime", cfg.Manifest.Name),
		found: make(chan struct{}), changed: make(chan struct{}),
		gens: map[int]*generation{}, workers: map[string]*Worker{},
	}
	r.vllmPrint = sync.OnceValue(func() string { return r.print(runtime.KindVLLM) })
	r.execPrint = sync.OnceValue(func() string { return r.print(runtime.KindExec) })
	return r
}

// Run finds living generations, keeps the newest up and follows every worker,
// until ctx ends. It then leaves every process alone and returns nil. It runs
// once.
func (r *Runtime) Run(ctx context.Context) error {
	if err := r.prepare(); err != nil {
		r.fail(err)
		r.setDown(true)
		close(r.found) // nobody waits for a look around that never comes
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	if r.ctx != nil {
		r.mu.Unlock()
		cancel()
		return fmt.Errorf("run runtime %s: it has run before", r.name)
	}
	r.ctx = ctx
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.over = true
		r.mu.Unlock()
		cancel()
		r.tasks.Wait()
		r.notify()
	}()
	r.discover(ctx)
	close(r.found)
	r.keep(ctx)
	return nil
}

// prepare refuses what can never work, with the name of what to change.
func (r *Runtime) prepare() error {
	for _, dir := range []string{r.cfg.RunDir, r.logDir()} {
		if err := os.MkdirAll(dir, 0o770); err != nil {
			return fmt.Errorf("prepare runtime %s: %w", r.name, err)
		}
	}
	if err := checkSocketPath(r.unit(1, "").Socket); err != nil {
		return fmt.Errorf("prepare runtime %s: %w", r.name, err)
	}
	return nil
}

// Status says whether warm starts can be had, and why not.
func (r *Runtime) Status() RuntimeStatus {
	g, closing := r.current(r.cfg.Manifest.Kind)
	r.mu.Lock()
	defer r.mu.Unlock()
	s := RuntimeStatus{Zygote: ZygoteStarting, Problem: r.problem}
	switch {
	case closing || r.over:
		s.Zygote, s.Problem = ZygoteDown, "it is shutting down"
	case g != nil:
		s.Generation, s.PID = g.n, g.proc.PID
		if g.state == genUp {
			s.Zygote, s.Problem = ZygoteUp, ""
		}
	case r.down:
		s.Zygote = ZygoteDown
	}
	return s
}

// current is the newest generation that new workers come from: of that kind, and
// started from what the manifest says today.
func (r *Runtime) current(kind string) (best *generation, closing bool) {
	print := r.fingerprint(kind)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.gens {
		usable := g.state == genUp || g.state == genStarting
		if usable && g.kind == kind && g.print == print && (best == nil || g.n > best.n) {
			best = g
		}
	}
	if best != nil && best.state == genUp && kind == r.cfg.Manifest.Kind {
		r.problem = ""
	}
	return best, r.closing
}

// route brings the end of a process to its worker.
func (r *Runtime) route(x exit) {
	r.mu.Lock()
	w := r.workers[x.Worker]
	r.mu.Unlock()
	if w != nil {
		w.post(func() { w.exited(x) })
	}
}

// task runs f as a goroutine of Run; false when Run is not running.
func (r *Runtime) task(f func(context.Context)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx == nil || r.over || r.ctx.Err() != nil {
		return false
	}
	r.tasks.Go(func() {
		f(r.ctx)
	})
	return true
}

// waiter returns a channel that closes at the next change: take it, look, wait.
func (r *Runtime) waiter() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *Runtime) notify() {
	r.mu.Lock()
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	r.cfg.OnChange()
}
