package worker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// sleepTime bounds a sleep on top of its grace, and a wake: both copy the weights
// between the device and the host's memory.
const sleepTime = 2 * time.Minute

// Sleep takes the weights of a serving model out of the device, and its KV cache
// with them: vLLM's level 1. Requests that run get grace to finish; when they do not,
// the model stays awake and the error is a *RemoteError of code busy. New requests are
// answered 503 until Wake. What sleeps already stays so.
//
// An end of ctx does not undo it: what was asked for comes to an end of its own.
func (w *Worker) Sleep(ctx context.Context, grace time.Duration) error {
	return reaching(ctx, func() error {
		_, err := w.rest(ctx, Sleeping, "sleep", grace, map[string]any{"level": 1, "grace_ms": grace.Milliseconds()})
		return err
	})
}

// Wake brings the weights back and returns the phase that this took, zero when the
// model was awake. Requests that come meanwhile wait for it.
func (w *Worker) Wake(ctx context.Context) (took PhaseEvent, err error) {
	err = reaching(ctx, func() error {
		took, err = w.rest(ctx, Serving, "wake", 0, map[string]any{})
		return err
	})
	return took, err
}

// rest has the API half do it, which does one such request at a time.
func (w *Worker) rest(ctx context.Context, to State, op string, grace time.Duration, req map[string]any) (PhaseEvent, error) {
	type turn struct {
		api *conn
		err error
	}
	turns := make(chan turn, 1)
	look := func() {
		switch {
		case w.state != Serving && w.state != Sleeping:
			turns <- turn{err: &StateError{Worker: w.id, Request: op, State: w.state, Placement: w.rec.Placement}}
		case w.cold:
			turns <- turn{err: fmt.Errorf("%s worker %s: %w: it was started cold, past warmd's control", op, w.id, errors.ErrUnsupported)}
		case w.conns[roleAPI] == nil:
			turns <- turn{err: fmt.Errorf("%s worker %s: %w", op, w.id, errUnreachable)}
		default:
			turns <- turn{api: w.conns[roleAPI]}
		}
	}
	if !w.post(look) {
		return PhaseEvent{}, w.gone(op)
	}
	var t turn
	select {
	case t = <-turns:
	case <-w.ended:
		return PhaseEvent{}, w.gone(op)
	}
	if t.err != nil {
		return PhaseEvent{}, t.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+sleepTime)
	defer cancel()
	var took struct {
		StartNS int64 `json:"start_ns"`
		DurNS   int64 `json:"dur_ns"`
	}
	if err := t.api.call(ctx, op, req, &took); err != nil {
		if refusedWith(err, "unsupported") {
			err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		}
		return PhaseEvent{}, fmt.Errorf("%s worker %s: %w", op, w.id, err)
	}
	// The half's own word on its state is on the way, before or behind this answer.
	moved := make(chan struct{})
	if w.post(func() { w.rested(to); w.publish(); close(moved) }) {
		select {
		case <-moved:
		case <-w.ended:
		}
	}
	if took.DurNS == 0 {
		return PhaseEvent{}, nil
	}
	return PhaseEvent{Proc: roleAPI, Name: op, Start: monotonic(took.StartNS), Dur: time.Duration(took.DurNS)}, nil
}

// rested moves between serving and sleeping, which a half may do as often as it is
// told to; every other word of a half only ever leads on.
func (w *Worker) rested(to State) {
	if (w.state == Serving || w.state == Sleeping) && len(w.ending.deaths) == 0 {
		w.halves[roleAPI] = to
		w.move(to)
	}
}
