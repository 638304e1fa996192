package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"warmd/agent/internal/worker"
)

// Times of what systemd is told.
const (
	statusPause = 250 * time.Millisecond // changes within it are one line
	startStep   = 10 * time.Second       // how often more time is asked for while zygotes import ...
	startMore   = 3 * startStep          // ... and how much
	loopTime    = 2 * time.Second        // for a device's loop to answer
)

// supervise tells systemd, or whoever started us in its way, how the node is: ready
// once, a line of figures whenever they change, and that the loops turn. When nobody
// listens there is nothing to do.
func (a *Agent) supervise(ctx context.Context) error {
	n := a.opt.Notifier
	if !n.Enabled() {
		return nil
	}
	dog := make(chan error, 1)
	go func() { dog <- n.Watchdog(ctx, func() error { return a.Alive(ctx) }) }()
	defer func() { _ = <-dog }()
	defer n.Stopping("ending; engines go on")

	ready, told := false, ""
	tick := time.NewTicker(startStep)
	defer tick.Stop()
	for {
		waits, now := a.waitsFor(), a.Status()
		switch {
		case !ready && len(waits) == 0:
			ready = true
			tick.Stop()
			n.Ready(now)
			a.log.Info("ready", "status", now)
		case !ready:
			n.Extend(startMore)
			now = "starting, waiting for " + strings.Join(waits, ", ") + "; " + now
			fallthrough
		default:
			if now != told {
				n.Status("%s", now)
			}
		}
		told = now
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-a.noted:
			wait := time.NewTimer(statusPause)
			select {
			case <-ctx.Done():
				wait.Stop()
				return nil
			case <-wait.C:
			}
		}
	}
}

// waitsFor names what has not been heard of yet: devices that were not looked at,
// zygotes that are neither up nor have said why not.
func (a *Agent) waitsFor() (names []string) {
	for _, d := range a.devices {
		if !d.Measured() {
			names = append(names, d.ID())
		}
	}
	for _, name := range a.runtimeNames {
		if s := a.runtimes[name].Status(); s.Zygote != worker.ZygoteUp && s.Problem == "" {
			names = append(names, name)
		}
	}
	return names
}

// Alive returns nil when every device's loop answers, through its own queue. It is
// what the watchdog asks: an agent whose loops stand still takes no claim.
func (a *Agent) Alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loopTime)
	defer cancel()
	errs := make(chan error, len(a.devices))
	for _, d := range a.devices {
		go func() {
			err := d.Ping(ctx)
			if err != nil {
				err = fmt.Errorf("the loop of device %s does not answer: %w", d.ID(), err)
			}
			errs <- err
		}()
	}
	var all error
	for range a.devices {
		all = errors.Join(all, <-errs)
	}
	return all
}

// Status is the node in one line, for `systemctl status`.
func (a *Agent) Status() string {
	devices := fmt.Sprintf("%d devices", len(a.devices))
	if len(a.devices) == 1 {
		devices = "1 device"
	}
	var warm, serving, loading, quarantined, unwell int
	for _, d := range a.devices {
		v := d.View()
		if v.Device.Problem != "" {
			unwell++
		}
		for _, w := range v.Workers {
			switch {
			case w.Quarantined:
				quarantined++
			case w.State == string(worker.Warm):
				warm++
			case w.State == string(worker.Serving), w.State == string(worker.Sleeping):
				serving++
			case w.State == string(worker.Loading):
				loading++
			}
		}
	}
	figures := []string{devices, fmt.Sprintf("%d warm, %d serving, %d loading", warm, serving, loading)}
	for _, more := range []struct {
		n    int
		what string
	}{{quarantined, "quarantined"}, {unwell, "with a problem"}} {
		if more.n > 0 {
			figures = append(figures, fmt.Sprintf("%d %s", more.n, more.what))
		}
	}
	if a.draining.Load() {
		figures = append(figures, "draining")
	}
	parts := []string{strings.Join(figures, ", ")}
	for _, name := range a.runtimeNames {
		s := a.runtimes[name].Status()
		part := name + " " + s.Zygote
		if s.Problem != "" {
			first, _, _ := strings.Cut(s.Problem, "\n")
			part += " (" + first + ")"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}
