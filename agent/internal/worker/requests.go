package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// The requests of worker.go, as the loop carries them out. What may block is done
// by a goroutine that posts its outcome.

type loadRequest struct {
	Placement string            `json:"placement"`
	Attempt   int               `json:"attempt"`
	Argv      []string          `json:"argv"`
	Env       map[string]string `json:"env"`
	Dir       string            `json:"dir"` // of the pair's own sockets: hs, in, out
	Peer      Proc              `json:"peer"`
}

// load sends both halves their part. The same placement and attempt is sent again
// while loading: an earlier agent may have reached one half only.
func (w *Worker) load(ctx context.Context, s LoadSpec, res chan<- error) {
	same := s.Placement == w.rec.Placement && s.Attempt == w.rec.Attempt
	switch {
	case (w.state == Serving || w.state == Sleeping) && same:
		res <- nil
		return
	case w.cold, w.state != Warm && !(w.state == Loading && same):
		res <- &StateError{Worker: w.id, Request: "load", State: w.state, Placement: w.rec.Placement}
		return
	}
	engine, api := w.conns[roleEngine], w.conns[roleAPI]
	if engine == nil || api == nil {
		res <- fmt.Errorf("load worker %s: %w", w.id, errUnreachable)
		return
	}
	w.rec.Placement, w.rec.Attempt = s.Placement, s.Attempt
	if w.state == Warm {
		w.move(Loading)
	}
	base := loadRequest{s.Placement, s.Attempt, s.Argv, s.Env, w.dir(), Proc{}}
	toEngine, toAPI := base, base
	toEngine.Peer, toAPI.Peer = w.procs[roleAPI], w.procs[roleEngine]
	w.help(func(run context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(run, cancel)()
		first := make(chan error, 1)
		go func() { first <- engine.call(ctx, "load", toEngine, nil) }()
		var files []*os.File
		if s.Listener != nil {
			files = []*os.File{s.Listener}
		}
		err := api.call(ctx, "load", toAPI, nil, files...)
		if err = errors.Join(<-first, err); err != nil {
			err = fmt.Errorf("load worker %s: %w", w.id, err)
			w.post(func() { w.abandon(err) })
		}
		res <- err
	})
}

// abandon ends a worker that cannot go on.
func (w *Worker) abandon(err error) {
	if w.stopped || len(w.ending.deaths) > 0 {
		return
	}
	w.ending.reason = err.Error()
	w.fault(w.ending.reason, tail(w.log, 20))
	w.move(Draining)
	w.killWithin(0)
}

// served moves a cold worker on. A pair says itself that it serves; its word may
// come a moment after the caller's probe was answered.
func (w *Worker) served() error {
	switch {
	case w.state == Serving, w.state == Sleeping, w.state == Loading && !w.cold:
		return nil
	case w.state != Loading:
		return &StateError{Worker: w.id, Request: "mark", State: w.state, Placement: w.rec.Placement}
	}
	w.move(Serving)
	return nil
}

// stop drains what serves and sets the time of the kill. A worker without work to
// finish is killed at once.
func (w *Worker) stop(grace time.Duration) {
	w.stopped = true
	w.ending.asked = w.ending.asked || len(w.ending.deaths) == 0 && w.ending.reason == ""
	busy := w.state == Serving || w.state == Loading && w.cold || w.state == Draining && w.ending.reason == ""
	if w.state != Spawning {
		w.move(Draining)
	}
	if !busy || grace <= 0 || len(w.ending.deaths) > 0 {
		w.killWithin(0)
		return
	}
	w.killWithin(grace)
	if w.drained {
		return
	}
	w.drained = true
	api, serve := w.conns[roleAPI], w.procs[roleServe]
	w.help(func(ctx context.Context) { w.drain(ctx, grace, api, serve) })
}

// drain asks for a graceful end: a half through its socket, a cold process by
// SIGTERM to itself only (its own children are its business, and the group would
// lose the engine under running requests).
func (w *Worker) drain(ctx context.Context, grace time.Duration, api *conn, serve Proc) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	err := errors.New("its control socket does not answer")
	switch {
	case serve.PID > 0:
		if err = serve.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, ErrGone) {
			err = w.rt.signal(ctx, w.gen, serve, syscall.SIGTERM)
		}
	case api != nil:
		err = api.call(ctx, "drain", map[string]int64{"grace_ms": grace.Milliseconds()}, nil)
	}
	if err == nil || errors.Is(err, ErrGone) || ctx.Err() != nil {
		return
	}
	w.rt.log.Warn("worker does not drain, killing it", "worker", w.id, "err", err)
	w.post(func() { w.killWithin(0) })
}
