package device

import (
	"context"
	"errors"
	"time"

	"warmd/agent/internal/worker"
	"warmd/placement"
)

// tokenTime bounds the first token of a model that has just woken.
const tokenTime = time.Minute

// Sleep takes a placement's weights out of the device; requests under way get grace
// to finish. The placement keeps its slot, its worker and its endpoint, which answers
// 503 until [Device.Wake]. What sleeps already stays so.
func (d *Device) Sleep(ctx context.Context, e *Entry, grace time.Duration) (placement.Placement, error) {
	l, err := d.restless(ctx, e)
	if err != nil {
		return e.Placement(), err
	}
	defer func() { <-l.resting }()
	if l.sleeps() {
		return e.Placement(), nil
	}
	begin := time.Now()
	if err := l.worker.Sleep(ctx, grace); err != nil {
		return e.Placement(), restError(e.ID, "sleep", err)
	}
	l.rested()
	err = d.ask(ctx, func() {}) // the View first: who hears the event may look
	d.emit("placement.sleeping", e.ID, e.Placement().Worker, "asleep after %.2f s", time.Since(begin).Seconds())
	return e.Placement(), err
}

// Wake brings the weights back and returns when a token came out: a start of tier
// sleeping, with a trace of its own. What is awake is left alone.
func (d *Device) Wake(ctx context.Context, e *Entry, traceparent string) (placement.Placement, error) {
	at := time.Now()
	l, err := d.restless(ctx, e)
	if err != nil {
		return e.Placement(), err
	}
	defer func() { <-l.resting }()
	if !l.sleeps() {
		return e.Placement(), nil
	}
	p := e.Placement()
	t := d.cfg.Trace(placement.Trace{
		Placement: p.ID, Node: d.cfg.Node, Device: d.cfg.ID, Runtime: l.claim.Runtime, Model: p.Request.Model, Tier: placement.TierSleeping,
	}, traceparent, at)
	took, err := l.worker.Wake(ctx)
	if err != nil {
		t.Fail(err.Error())
		return p, restError(e.ID, "wake", err)
	}
	l.rested()
	t.Phase(took.Name, took.Proc, took.Start, took.Dur)
	begin := time.Now()
	ask, cancel := context.WithTimeout(l.ctx, tokenTime)
	defer cancel()
	if err := d.cfg.Probe(ask, p.Endpoint, p.Request.Name); err != nil {
		t.Fail(err.Error())
		return e.Placement(), placement.Errorf(placement.CodeStartFailed, "placement %s woke and gives no token: %v", e.ID, err).
			WithHint("warmctl logs %s shows the engine's log", e.ID)
	}
	now := time.Now()
	t.Phase("first token", "agent", begin, now.Sub(begin))
	t.Ready(now)
	d.cfg.Observe.Started(placement.TierSleeping, now.Sub(at).Seconds())
	err = d.ask(ctx, func() {})
	d.emit("placement.awake", e.ID, p.Worker, "awake, first token after %.2f s", now.Sub(at).Seconds())
	return e.Placement(), err
}

// restless finds the life of a placement that is ready and not ending, once nobody
// else has it sleep or wake.
func (d *Device) restless(ctx context.Context, e *Entry) (l *life, err error) {
	if askErr := d.ask(ctx, func() {
		l = d.busy[e.ID]
		if r := e.Record(); l == nil || r.Ending != "" || r.Placement.State != placement.Ready || l.shown == nil {
			err = placement.Errorf(placement.CodeConflict, "placement %s is %s", e.ID, r.Placement.State).WithHint("only what serves can sleep, and only what sleeps can be woken")
		}
	}); askErr != nil {
		return nil, askErr
	}
	if err != nil {
		return nil, err
	}
	select {
	case l.resting <- struct{}{}:
		return l, nil
	case <-l.ctx.Done():
		return nil, placement.Errorf(placement.CodeConflict, "placement %s is ending", e.ID)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (l *life) sleeps() bool { return l.worker.Info().State == string(worker.Sleeping) }

// rested notes in the record whether the worker sleeps. The worker's own word counts,
// not the news of it, which may be older.
func (l *life) rested() {
	if s := l.sleeps(); s != l.e.Placement().Sleeping {
		_ = l.e.Update(false, func(r *Record) { r.Placement.Sleeping, r.WorkerRecord = s, l.worker.Record() })
	}
}

// restError is why a model does not sleep or wake, for who asked.
func restError(id, verb string, err error) error {
	said, _ := errors.AsType[*worker.RemoteError](err)
	_, wrong := errors.AsType[*worker.StateError](err)
	why := err.Error()
	if said != nil {
		why = said.Message
	}
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return placement.Errorf(placement.CodeUnsupported, "%s %s: %s", verb, id, why)
	case said != nil && said.Code == "busy":
		return placement.Errorf(placement.CodeConflict, "%s %s: %s", verb, id, why).WithHint("give them more time with --grace")
	case wrong:
		return placement.Errorf(placement.CodeConflict, "%s %s: %s", verb, id, why)
	}
	return placement.Errorf(placement.CodeInternal, "%s %s: %s", verb, id, why).WithHint("warmctl logs %s shows the engine's log", id)
}
