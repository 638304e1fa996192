package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Shutdown ends every zygote of this runtime and everything they started, of all
// generations, and returns nil when each process is proven gone. It works while
// Run runs (workers then report their death), and after it.
func (r *Runtime) Shutdown(ctx context.Context) error {
	r.mu.Lock()
	r.closing = true
	r.mu.Unlock()
	r.launching.Lock()   // a launch under way ends first, so that we find its zygote
	r.launching.Unlock() //nolint:staticcheck // nothing to do in between
	r.notify()
	// Twice: a fork that was under way may still have made a child after the first
	// look. After the zygotes are gone nothing makes another one.
	err := r.endWorkers(ctx)
	if err == nil {
		err = r.endZygotes(ctx)
	}
	if err == nil {
		err = r.endStrays(ctx)
	}
	if err == nil {
		err = r.endWorkers(ctx)
	}
	if err != nil {
		return fmt.Errorf("shut down runtime %s: %w", r.name, err)
	}
	for _, n := range r.generations() {
		if err := os.RemoveAll(r.genDir(n)); err != nil {
			return fmt.Errorf("shut down runtime %s: %w", r.name, err)
		}
	}
	return nil
}

func (r *Runtime) endWorkers(ctx context.Context) error {
	var roots []Proc
	var groups []string
	for _, rec := range r.find(ctx, r.askAfresh) {
		roots, groups = append(roots, rec.living()...), append(groups, rec.group())
	}
	if !r.extinguish(ctx, 0, roots, groups...) {
		return fmt.Errorf("end workers: %w; still running: %v", ctx.Err(), remaining(roots, groups, map[Proc]bool{}))
	}
	return nil
}

// askAfresh asks for children over a connection of its own: Run need not follow the
// zygote, and one that hangs is to be ended, not waited for.
func (r *Runtime) askAfresh(ctx context.Context, n int) (kids []child) {
	ctx, cancel := context.WithTimeout(ctx, discoverTime)
	defer cancel()
	_ = withZygote(ctx, r.unit(n, "").Socket, func(c *conn) (err error) {
		kids, err = c.children(ctx)
		return err
	})
	return kids
}

// endZygotes stops each by its socket, and by force when that does not help.
func (r *Runtime) endZygotes(ctx context.Context) error {
	for _, n := range r.generations() {
		u, dir := r.unit(n, ""), r.genDir(n)
		proc := loadUnit(dir).Proc
		if !proc.Alive() { // or it was started a moment ago, and does not listen yet
			proc, _ = listener(u.Socket)
		}
		ask, cancel := context.WithTimeout(ctx, discoverTime)
		err := withZygote(ask, u.Socket, func(c *conn) error {
			if p, ok := c.peer(); ok {
				proc = p
			}
			return c.stopZygote(ask)
		})
		if err == nil && proc.PID > 0 {
			awaitAll(ask, []Proc{proc}, discoverTime)
		}
		cancel()
		if err := r.cfg.Launcher.Stop(ctx, u); err != nil {
			return err
		}
		if proc.PID > 0 && proc.Alive() {
			if err := proc.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, ErrGone) {
				return fmt.Errorf("end zygote %s: %w", filepath.Base(dir), err)
			}
		}
		for proc.PID > 0 && proc.Alive() {
			if !awaitAll(ctx, []Proc{proc}, discoverTime) {
				return fmt.Errorf("end zygote %s: process %v still runs: %w", filepath.Base(dir), proc, ctx.Err())
			}
		}
	}
	return nil
}

// endStrays ends zygotes of ours that no folder leads to any more, found by their
// command lines: the promise is that nothing is left, whatever went wrong before.
func (r *Runtime) endStrays(ctx context.Context) error {
	strays := withSocket(filepath.Join(r.cfg.RunDir, r.name) + ".")
	for _, p := range strays {
		r.log.Warn("a zygote was still there, ending it", "pid", p.PID)
		if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, ErrGone) {
			return fmt.Errorf("end stray zygote %v: %w", p, err)
		}
	}
	for _, p := range strays {
		for p.Alive() {
			if !awaitAll(ctx, []Proc{p}, discoverTime) {
				return fmt.Errorf("end stray zygote %v: it still runs: %w", p, ctx.Err())
			}
		}
	}
	return nil
}

// withZygote opens a connection for one use.
func withZygote(ctx context.Context, socket string, use func(*conn) error) error {
	c, err := dial(ctx, socket)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.read(func(string, []byte) {})
	}()
	err = use(c)
	c.close()
	<-ended
	return err
}
