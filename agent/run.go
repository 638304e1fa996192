package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"warmd/agent/api"
	"warmd/agent/internal/gpu"
	"warmd/placement"
)

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
	if err := a.adopt(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // ended before it began
		}
		return fmt.Errorf("run agent: %w", err)
	}
	defer stop("forgotten runtimes", a.endForgotten)()
	for _, d := range a.devices {
		defer stop("device "+d.ID(), d.Run)()
	}
	defer stop("device faults", a.watchFaults)()
	defer stop("publisher", a.publish)()
	srv := api.NewServer(a.handler(), a.log)
	a.guard.Protect(srv)
	if a.certs != nil {
		srv.TLSConfig = a.certs.Server()
	}
	defer stop("http", func(ctx context.Context) error { return api.Serve(ctx, srv, 2*time.Second, a.listeners...) })()
	defer stop("supervision", a.supervise)()
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

// span adds an engine's own phase to the progress of the start it belongs to.
func (a *Agent) span(id string, p placement.Phase) {
	if e := a.book.Get(id); e != nil {
		e.Feed.Add(placement.Progress{Event: placement.EventPhase, Phase: &p})
	}
}

// touch says that a device's View changed.
func (a *Agent) touch() {
	for _, ch := range []chan struct{}{a.changed, a.noted} {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// poke says that a zygote came or went.
func (a *Agent) poke() {
	for _, d := range a.devices {
		d.Poke()
	}
	a.touch()
}

// listen takes the sockets that came along, or opens those of the configuration, and
// decides what the fleet calls.
func (a *Agent) listen() (err error) {
	a.listeners, err = api.Listen(a.opt.Listeners, a.cfg.Socket, a.cfg.Listen, a.cfg.TLS)
	a.addr = a.cfg.Advertise
	for _, ln := range a.listeners {
		a.onClose("listener "+ln.Addr().String(), func() error { _ = ln.Close(); return nil }) // Serve closes it, too
		if a.addr == "" && ln.Addr().Network() == "tcp" {
			a.addr = ln.Addr().String()
		}
	}
	return err
}

// Addr is the address that the fleet calls; empty when the agent listens locally
// only.
func (a *Agent) Addr() string { return a.addr }
