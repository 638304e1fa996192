package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"warmd/agent/runtime"
)

// killTime is what a zygote gets to answer a kill; the next one is asked then.
const killTime = 300 * time.Millisecond

// signal reaches a process of any generation: through the zygote that started it,
// through any other, by ourselves, or, where engines belong to another user, which an
// agent may not signal, through a zygote that is started for it.
func (r *Runtime) signal(ctx context.Context, gen int, p Proc, sig syscall.Signal) error {
	tried := r.conns(gen)
	var refused error
	for _, c := range tried {
		err := ask(ctx, c, p, sig)
		if err == nil || errors.Is(err, ErrGone) {
			return err
		}
		refused = errors.Join(refused, err)
	}
	err := r.direct(p, sig)
	if err == nil || errors.Is(err, ErrGone) {
		return err
	}
	if errors.Is(err, syscall.EPERM) {
		c, none := r.helper(ctx, tried)
		if none == nil {
			none = ask(ctx, c, p, sig)
		}
		if none == nil || errors.Is(none, ErrGone) {
			return none
		}
		refused = errors.Join(refused, none)
	}
	return fmt.Errorf("no zygote could do it: %w", errors.Join(err, refused))
}

func ask(ctx context.Context, c *conn, p Proc, sig syscall.Signal) error {
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	return c.kill(ctx, p, sig)
}

// helper is a zygote that has not been tried yet. When there is none, one that only
// spawns and signals is started; it imports nothing, and is retired like any other that
// is not current.
func (r *Runtime) helper(ctx context.Context, tried []*conn) (*conn, error) {
	r.spawner.Lock() // many processes are killed at once: one helper is enough
	defer r.spawner.Unlock()
	for _, c := range r.conns(0) {
		if !slices.Contains(tried, c) {
			return c, nil
		}
	}
	g, err := r.launch(ctx, runtime.KindExec)
	if err != nil {
		return nil, err
	}
	select {
	case <-g.first:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.conn == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoZygote, g.problem)
	}
	return g.conn, nil
}

// conns lists the connections of zygotes that are up: gen's first, then from new
// to old.
func (r *Runtime) conns(gen int) (out []*conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range sortedDesc(r.gens) {
		g := r.gens[n]
		switch {
		case g.conn == nil:
		case n == gen:
			out = append([]*conn{g.conn}, out...)
		default:
			out = append(out, g.conn)
		}
	}
	return out
}
