package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"warmd/agent/api/access"
	"warmd/agent/internal/device"
	"warmd/agent/internal/gpu"
	"warmd/agent/internal/trace"
	"warmd/agent/internal/worker"
	"warmd/agent/runtime"
	"warmd/placement"
	"warmd/systemd"
)

// Options are what a caller may bring along; the zero value makes everything.
type Options struct {
	Logger *slog.Logger
	// Gossip is the fleet; nil means a fleet of one. The caller runs it.
	Gossip Gossip
	// Listeners are served instead of Config.Socket and Config.Listen: those of systemd,
	// under the one name, a Unix and a TCP socket told apart by their network.
	Listeners []net.Listener
	// EngineLines takes what engines print, with the fields of their placement; nil
	// leaves it in their log files alone.
	EngineLines worker.Lines
	// Supervised says that systemd started this process: then it starts the engines, too.
	Supervised bool
	// Notifier is told how the node is; nil when nobody listens.
	Notifier *systemd.Notifier
	// Manifests are the runtimes; nil means those in Config.RuntimesDir.
	Manifests []runtime.Manifest
	// Level is the logger's, if a reload may change it.
	Level *slog.LevelVar
	// Registry takes the metrics; nil makes one.
	Registry *prometheus.Registry
	// Ready is called once: listening, workers adopted, capacity right. It comes before
	// the Notifier's READY, which waits for zygotes.
	Ready func()

	// Inventory and Launcher are for tests inside this module's agent tree.
	Inventory gpu.Inventory
	Launcher  worker.Launcher
	// Timings of the loops, for tests.
	Timings device.Timings
}

// Agent is one node. See the package comment.
type Agent struct {
	cfg Config // as it was started with
	opt Options
	log *slog.Logger

	// live is the configuration of this moment, for what Reload can change.
	live      atomic.Pointer[Config]
	reloading sync.Mutex

	journal      *Journal
	book         *device.Book
	devices      []*device.Device
	runtimes     runtimes
	runtimeNames []string
	problems     []runtime.Problem
	endForgotten func(context.Context) error // ends zygotes of runtimes that were removed
	ports        *device.Ports
	inv          gpu.Inventory
	recorder     *trace.Recorder
	metrics      *metrics
	guard        *access.Guard
	certs        *access.Certificates // nil: no TLS
	events       *events
	listeners    []net.Listener
	addr         string // what the fleet calls

	epoch    int64
	started  time.Time
	draining atomic.Bool
	ready    atomic.Bool
	changed  chan struct{} // to the publisher
	noted    chan struct{} // to whoever tells systemd
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
	if opt.Notifier == nil {
		opt.Notifier = new(systemd.Notifier)
	}
	now := time.Now()
	a = &Agent{
		cfg: cfg, opt: opt, log: opt.Logger, started: now, epoch: now.UnixNano(), events: newEvents(),
		changed: make(chan struct{}, 1), noted: make(chan struct{}, 1), checks: make(chan struct{}, 8), runtimes: runtimes{},
	}
	a.live.Store(&cfg)
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
			a = nil
		}
	}()
	a.guard = access.NewGuard(access.Agent, cfg.Access, a.log)
	if !cfg.TLS.Empty() {
		if a.certs, err = access.Load(cfg.TLS, a.log); err != nil {
			return a, fmt.Errorf("read certificates: %w", err)
		}
	}
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
		Dir: filepath.Join(cfg.DataDir, "traces"), Keep: cfg.KeepTraces, Collector: cfg.Trace.Collector,
		Log: a.log, OnFinish: a.metrics.finished, OnSpan: a.span,
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
	scripts, err := runtime.Scripts(a.cfg.ScriptDir, a.cfg.unpackDir())
	if err != nil {
		return fmt.Errorf("unpack the Python side: %w", err)
	}
	launcher, err := a.launcher()
	if err != nil {
		return err
	}
	common := worker.RuntimeConfig{
		ScriptDir: scripts, RunDir: filepath.Join(a.cfg.RunDir, "rt"), LogDir: a.cfg.LogDir,
		Launcher: launcher, Lines: a.opt.EngineLines, Log: a.log, OnChange: a.poke,
	}
	for _, m := range manifests {
		cfg := common
		cfg.Manifest = m
		a.runtimes[m.Name] = &nodeRuntime{manifest: m, Runtime: worker.NewRuntime(cfg)}
		a.runtimeNames = append(a.runtimeNames, m.Name)
	}
	a.endForgotten = func(ctx context.Context) error {
		worker.EndForgotten(ctx, common, a.isThere)
		return nil
	}
	slices.Sort(a.runtimeNames)
	return nil
}

// isThere reports whether a runtime is installed, be it damaged.
func (a *Agent) isThere(name string) bool {
	return a.runtimes[name] != nil || slices.ContainsFunc(a.problems, func(p runtime.Problem) bool { return p.Name == name })
}

// launcher is who starts zygotes.
func (a *Agent) launcher() (worker.Launcher, error) {
	switch {
	case a.opt.Launcher != nil:
		return a.opt.Launcher, nil
	case a.cfg.Launcher == LaunchExec, a.cfg.Launcher == LaunchAuto && !a.opt.Supervised:
		return worker.NewExecLauncher(), nil
	case a.cfg.EndEngines:
		return nil, &placement.FieldError{Field: "--end-engines", Problem: "is for engines that the agent started; systemd has these: systemctl stop warmd.slice"}
	}
	l := worker.NewSystemdLauncher(a.log)
	a.onClose("D-Bus", l.Close)
	return l, nil
}

// addDevices makes a loop for each device, with the runtimes that were built for
// its kind.
func (a *Agent) addDevices() error {
	found, err := a.inv.Devices()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for i, dev := range found {
		rts := map[string]device.Runtime{}
		for name, r := range a.runtimes {
			if m := r.manifest; m.Device == "" || m.Device == dev.Kind {
				rts[name] = bind(r.Runtime, m, dev)
			}
		}
		d := device.New(device.Config{
			Node: a.cfg.Node, ID: dev.ID, Kind: dev.Kind, Name: dev.Name, TotalBytes: dev.TotalBytes,
			Slots: a.cfg.slots(dev.ID, dev.Kind, dev.TotalBytes), Draining: a.draining.Load(), Warm: a.warmOn(dev.ID), Runtimes: rts,
			Memory: memory{a.inv, dev.ID}, Journal: a.journal, Ports: a.ports, NewID: workerIDs(i), Probe: device.Probe,
			Trace: a.recording(),
			Resume: func(id string) device.Trace {
				if t, ok := a.recorder.Resume(id); ok {
					return t
				}
				return nil
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

// recording begins traces; nil when none are to be kept: then engines are not asked
// for their spans either, and a start costs what it costs without a recorder.
func (a *Agent) recording() func(placement.Trace, string, time.Time) device.Trace {
	if a.cfg.KeepTraces == 0 {
		return nil
	}
	return func(head placement.Trace, parent string, at time.Time) device.Trace {
		return a.recorder.Begin(head, parent, at)
	}
}

// warmOn is how many workers of each runtime are wanted parked on a device, which
// knows itself which of them it can run.
func (a *Agent) warmOn(id string) map[string]int {
	warm := map[string]int{}
	for name, r := range a.runtimes {
		warm[name] = a.live.Load().warm(id, r.manifest)
	}
	return warm
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
