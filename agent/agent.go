package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"warmd/agent/api"
	"warmd/agent/internal/device"
	"warmd/agent/internal/gpu"
	"warmd/agent/internal/trace"
	"warmd/agent/internal/worker"
	"warmd/agent/runtime"
	"warmd/placement"
)

// Options are what a caller may bring along; the zero value makes everything.
type Options struct {
	Logger *slog.Logger
	// Gossip is the fleet; nil means a fleet of one. The caller runs it.
	Gossip Gossip
	// Listeners are served besides Config.Socket and Config.Listen: those of systemd.
	Listeners []net.Listener
	// Manifests are the runtimes; nil means those in Config.RuntimesDir.
	Manifests []runtime.Manifest
	// Registry takes the metrics; nil makes one.
	Registry *prometheus.Registry
	// Ready is called once: listening, workers adopted, capacity right.
	Ready func()

	// Inventory and Launcher are for tests inside this module's agent tree.
	Inventory gpu.Inventory
	Launcher  worker.Launcher
	// Timings of the loops, for tests.
	Timings device.Timings
}

// Agent is one node. See the package comment.
type Agent struct {
	cfg Config
	opt Options
	log *slog.Logger

	journal      *Journal
	book         *device.Book
	devices      []*device.Device
	runtimes     runtimes
	runtimeNames []string
	problems     []runtime.Problem
	ports        *device.Ports
	inv          gpu.Inventory
	recorder     *trace.Recorder
	metrics      *metrics
	events       *events
	listeners    []net.Listener
	addr         string // what the fleet calls

	epoch    int64
	started  time.Time
	draining atomic.Bool
	ready    atomic.Bool
	changed  chan struct{} // to the publisher
	checks   chan struct{} // bounds model checks

	capMu sync.Mutex
	last  placement.Capacity

	closers []closer // undone in reverse order
}

// closer is one named step of the teardown.
type closer struct {
	name string
	do   func() error
}

// New reads the configuration, opens what can fail (journal, devices, runtimes,
// sockets) and starts nothing. After an error nothing is left open.
func New(cfg Config, opt Options) (a *Agent, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check configuration: %w", err)
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	now := time.Now()
	a = &Agent{
		cfg: cfg, opt: opt, log: opt.Logger, started: now, epoch: now.UnixNano(), events: newEvents(),
		changed: make(chan struct{}, 1), checks: make(chan struct{}, 8), runtimes: runtimes{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
			a = nil
		}
	}()
	low, high, err := cfg.ports()
	if err != nil {
		return a, err
	}
	a.ports = &device.Ports{Host: cfg.EndpointHost, Low: low, High: high}
	if a.journal, err = OpenJournal(cfg.DataDir, a.log); err != nil {
		return a, err
	}
	a.onClose("journal", a.journal.Close)
	a.draining.Store(a.journal.state.draining)
	a.book = device.NewBook(a.journal)
	if a.inv = opt.Inventory; a.inv == nil {
		a.inv, err = gpu.Open(gpu.Options{LibraryPath: cfg.NVMLLibrary, CPU: cfg.Device == "cpu", NVML: cfg.Device == "cuda", Log: a.log})
		if err != nil {
			return a, fmt.Errorf("find devices: %w", err)
		}
		a.onClose("inventory", a.inv.Close)
	}
	if a.metrics, err = newMetrics(a, opt.Registry); err != nil {
		return a, err
	}
	a.recorder, err = trace.New(trace.Options{
		Dir: filepath.Join(cfg.DataDir, "traces"), Keep: cfg.KeepTraces, Log: a.log, OnFinish: a.metrics.finished, OnSpan: a.span,
	})
	if err != nil {
		return a, fmt.Errorf("open traces: %w", err)
	}
	a.onClose("traces", func() error { _ = a.recorder.Close(); return nil }) // Run closes it, too
	if err := a.addRuntimes(); err != nil {
		return a, err
	}
	if err := a.addDevices(); err != nil {
		return a, err
	}
	return a, a.listen()
}

func (a *Agent) onClose(name string, do func() error) {
	a.closers = append(a.closers, closer{name, do})
}

// close undoes what was opened, last first.
func (a *Agent) close() error {
	var all error
	for _, c := range slices.Backward(a.closers) {
		if err := c.do(); err != nil {
			all = errors.Join(all, fmt.Errorf("close %s: %w", c.name, err))
		}
	}
	a.closers = nil
	return all
}

// addRuntimes makes every runtime that is installed; a broken one is a problem to
// report, not a reason to serve nothing.
func (a *Agent) addRuntimes() error {
	manifests := a.opt.Manifests
	if manifests == nil {
		var err error
		if manifests, a.problems, err = runtime.List(a.cfg.RuntimesDir); err != nil {
			return err
		}
		for _, p := range a.problems {
			a.log.Error("runtime cannot be used", "runtime", p.Name, "problem", p.Message, "cure", p.Cure)
		}
	}
	scripts, err := runtime.Unpack(filepath.Join(a.cfg.DataDir, "python"))
	if err != nil {
		return fmt.Errorf("unpack the Python side: %w", err)
	}
	launcher := a.opt.Launcher
	if launcher == nil {
		launcher = worker.NewExecLauncher()
	}
	for _, m := range manifests {
		a.runtimes[m.Name] = &nodeRuntime{manifest: m, Runtime: worker.NewRuntime(worker.RuntimeConfig{
			Manifest: m, ScriptDir: scripts, RunDir: filepath.Join(a.cfg.RunDir, "rt"), LogDir: a.cfg.LogDir,
			Launcher: launcher, Log: a.log, OnChange: a.poke,
		})}
		a.runtimeNames = append(a.runtimeNames, m.Name)
	}
	slices.Sort(a.runtimeNames)
	return nil
}

// addDevices makes a loop for each device, with the runtimes that were built for
// its kind.
func (a *Agent) addDevices() error {
	found, err := a.inv.Devices()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for i, dev := range found {
		rts, warm := map[string]device.Runtime{}, map[string]int{}
		for name, r := range a.runtimes {
			if m := r.manifest; m.Device == "" || m.Device == dev.Kind {
				rts[name] = bind(r.Runtime, m, dev)
				warm[name] = a.cfg.warm(dev.ID, m)
			}
		}
		d := device.New(device.Config{
			Node: a.cfg.Node, ID: dev.ID, Kind: dev.Kind, Name: dev.Name, TotalBytes: dev.TotalBytes,
			Slots: a.cfg.slots(dev.ID, dev.Kind, dev.TotalBytes), Draining: a.draining.Load(), Warm: warm, Runtimes: rts,
			Memory: memory{a.inv, dev.ID}, Journal: a.journal, Ports: a.ports, NewID: workerIDs(i), Probe: device.Probe,
			Trace: func(head placement.Trace, parent string, at time.Time) device.Trace {
				return a.recorder.Begin(head, parent, at)
			},
			Observe: a.metrics, Emit: a.events.add, OnChange: a.touch, Capacity: a.Capacity, Log: a.log, Timings: a.timings(),
		})
		if dev.Problem != "" {
			d.SetFault(dev.Problem)
		}
		a.devices = append(a.devices, d)
	}
	return nil
}

func (a *Agent) timings() device.Timings {
	t := a.opt.Timings
	if t.Follow == 0 {
		t.Follow = a.cfg.FollowGrace
	}
	return t
}

// workerIDs makes ids that say which device a worker was made for, so that one
// that no journal knows is quarantined where its memory is.
func workerIDs(deviceIndex int) func() string {
	return func() string {
		var b [5]byte
		_, _ = rand.Read(b[:]) // never fails
		return fmt.Sprintf("w%d-%s", deviceIndex, hex.EncodeToString(b[:]))
	}
}

// listen opens the sockets. A Unix socket that nobody answers on is a leftover.
func (a *Agent) listen() error {
	a.listeners = append(a.listeners, a.opt.Listeners...)
	add := func(ln net.Listener) {
		a.listeners = append(a.listeners, ln)
		a.onClose("listener "+ln.Addr().String(), func() error { _ = ln.Close(); return nil }) // Serve closes it, too
	}
	if a.cfg.Socket != "" {
		ln, err := listenUnix(a.cfg.Socket)
		if err != nil {
			return err
		}
		add(ln)
	}
	for _, addr := range a.cfg.Listen {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("listen on %s: %w (another agent, or another program? ss -ltnp shows it)", addr, err)
		}
		add(ln)
	}
	a.addr = a.cfg.Advertise
	for _, ln := range a.listeners {
		if a.addr == "" && ln.Addr().Network() == "tcp" {
			a.addr = ln.Addr().String()
		}
	}
	return nil
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make socket folder: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("listen on %s: another agent answers there", path)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("listen on %s: it is there and is not a socket: move it away", path)
		}
		_ = os.Remove(path)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("set mode of %s: %w", path, err)
	}
	return ln, nil
}

// Addr is the address that the fleet calls; empty when the agent listens locally
// only.
func (a *Agent) Addr() string { return a.addr }

// span adds an engine's own phase to the progress of the start it belongs to.
func (a *Agent) span(id string, p placement.Phase) {
	if e := a.book.Get(id); e != nil {
		e.Feed.Add(placement.Progress{Event: placement.EventPhase, Phase: &p})
	}
}

// touch says that a device's View changed.
func (a *Agent) touch() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// poke says that a zygote came or went.
func (a *Agent) poke() {
	for _, d := range a.devices {
		d.Poke()
	}
	a.touch()
}

// Run serves until ctx ends. It starts from the bottom (runtimes, adoption, loops,
// HTTP) and ends in reverse, so that nothing outlives what it stands on. Unless
// Config.EndEngines is set, no engine notices.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.close()) }()
	base := context.WithoutCancel(ctx)
	if len(a.devices) == 0 {
		return errors.New("run agent: no device was found")
	}
	failed := make(chan error, 8+len(a.runtimes)+len(a.devices))
	stop := func(name string, run func(context.Context) error) func() {
		c, cancel := context.WithCancel(base)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := run(c); err != nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		}()
		return func() { cancel(); <-done }
	}
	defer stop("traces", a.recorder.Run)()
	defer stop("runtimes", a.runRuntimes)()
	if a.cfg.EndEngines {
		defer func() { err = errors.Join(err, a.endEngines(base)) }()
	}
	a.adopt(ctx)
	for _, d := range a.devices {
		defer stop("device "+d.ID(), d.Run)()
	}
	defer stop("device faults", a.watchFaults)()
	defer stop("publisher", a.publish)()
	srv := api.NewServer(a.Handler(), a.log)
	defer stop("http", func(ctx context.Context) error { return api.Serve(ctx, srv, 2*time.Second, a.listeners...) })()
	a.ready.Store(true)
	a.log.Info("agent runs", "node", a.cfg.Node, "devices", len(a.devices), "runtimes", a.runtimeNames, "addr", a.addr)
	if a.opt.Ready != nil {
		a.opt.Ready()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("run agent: %w", err)
	}
}

func (a *Agent) runRuntimes(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make(chan error, len(a.runtimes))
	for name, r := range a.runtimes {
		wg.Go(func() {
			if err := r.Run(ctx); err != nil {
				errs <- fmt.Errorf("runtime %s: %w", name, err)
			}
		})
	}
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

// endEngines is the end of dev mode: every process proven gone, and the journal
// told, so that the next start does not look for them.
func (a *Agent) endEngines(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownTime)
	defer cancel()
	if err := a.runtimes.shutdown(ctx); err != nil {
		return err
	}
	a.journal.forgetLiving("the agent was stopped and ended its engines (dev mode)")
	return nil
}

// publish tells the fleet about changes, and once in a while how much memory is free.
func (a *Agent) publish(ctx context.Context) error {
	t := time.NewTicker(10 * time.Second)
	defer t.Stop()
	var told uint64
	for {
		if c := a.Capacity(); c.Generation != told && a.opt.Gossip != nil {
			a.opt.Gossip.SetCapacity(c)
			told = c.Generation
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.changed:
		case <-t.C:
		}
	}
}

// watchFaults takes what the driver says about devices.
func (a *Agent) watchFaults(ctx context.Context) error {
	return a.inv.Watch(ctx, func(f gpu.Fault) {
		a.events.add(placement.Event{At: time.Now(), Node: a.cfg.Node, Device: f.Device, Kind: "device.fault", Message: f.Message})
		a.log.Error("device fault", "device", f.Device, "xid", f.Xid, "fatal", f.Fatal, "msg", f.Message)
		found, err := a.inv.Devices()
		if err != nil {
			return
		}
		for _, dev := range found {
			if d := a.device(dev.ID); d != nil {
				d.SetFault(dev.Problem)
			}
		}
	})
}

// SetDrain makes the node refuse, or take, new placements; it outlives a restart.
func (a *Agent) SetDrain(ctx context.Context, on bool) (placement.Capacity, error) {
	if err := a.journal.SetDraining(on); err != nil && !on {
		return a.Capacity(), err // taking claims again without the disk makes no sense
	}
	a.draining.Store(on)
	for _, d := range a.devices {
		if err := d.Drain(ctx, on); err != nil {
			return a.Capacity(), err
		}
	}
	kind := "node.undrain"
	if on {
		kind = "node.drain"
	}
	a.events.add(placement.Event{At: time.Now(), Node: a.cfg.Node, Kind: kind, Message: "asked for by an operator"})
	a.touch()
	return a.Capacity(), nil
}
