package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"warmd/placement"
)

// accept writes the claim down. Nothing has been started yet: a refusal leaves
// everything as it was.
func (l *life) accept() *placement.Error {
	tier := placement.TierWarm
	if l.cold {
		tier = placement.TierCold
	}
	p := l.e.Placement()
	l.trace = l.d.cfg.Trace(placement.Trace{
		Placement: p.ID, Node: l.d.cfg.Node, Device: l.d.cfg.ID, Runtime: l.claim.Runtime, Model: p.Request.Model, Tier: tier,
	}, p.Request.Traceparent, p.Created)
	begin := time.Now()
	err := l.e.Update(true, func(r *Record) {
		r.Deadline = l.claim.Deadline
		r.Placement.State, _ = placement.Move(r.Placement.State, placement.Loading)
		r.Placement.Node, r.Placement.Device, r.Placement.Runtime = l.d.cfg.Node, l.d.cfg.ID, l.claim.Runtime
		r.Placement.Tier, r.Placement.Endpoint = tier, l.claim.Endpoint.URL()
		r.Placement.TraceID = traceID(l.trace)
		r.Placement.Updated = time.Now()
		if l.parked != nil {
			r.Placement.Worker = l.parked.id
			if l.parked.isWarm() {
				r.WorkerRecord = l.parked.worker.Record()
			}
		}
	})
	if err != nil {
		l.trace.Fail(err.Error())
		return placement.AsError(err)
	}
	l.trace.Phase("journal", "agent", begin, time.Since(begin))
	close(l.e.decided)
	l.line(placement.EventAccepted, l.coldReason)
	l.d.emit("placement.accepted", p.ID, l.e.Placement().Worker, "model %s, %s start, endpoint %s", p.Request.Model, tier, l.claim.Endpoint.URL())
	return nil
}

// start brings the endpoint to its first token.
func (l *life) start() error {
	if err := l.acquire(); err != nil {
		return err
	}
	p := l.e.Placement()
	begin := time.Now()
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	token, asked := make(chan error, 1), false
	for {
		// Clients wait in the endpoint's backlog since the claim, and an engine takes one
		// prompt after the other: whoever is there goes first. A cold engine says nothing.
		if !asked && (l.cold || l.deaf || l.worker.Info().State == serving) {
			asked = true
			l.d.wg.Go(func() { token <- l.d.cfg.Probe(ctx, p.Endpoint, p.Request.Name) })
		}
		select {
		case err := <-token:
			if err != nil && l.ctx.Err() == nil {
				// The worker's own last word says more than a broken connection.
				if dead := l.lastWord(2 * time.Second); dead != nil {
					return dead
				}
			}
			if err != nil {
				return err
			}
			if err := l.claim.Endpoint.onEveryAddress(); err != nil {
				return err
			}
			l.phase("first token", "agent", begin, time.Since(begin))
			return l.ready()
		case ev, ok := <-l.events():
			if dead := l.hear(ev, ok); dead != nil {
				return dead
			}
		case <-l.ctx.Done():
			return context.Cause(l.ctx)
		}
	}
}

// acquire gets the worker, and gives it the model unless it has it already.
func (l *life) acquire() error {
	if err := l.wait(l.after...); err != nil {
		return err
	}
	if l.worker != nil && (l.cold || (l.claim.Endpoint.Held() && l.worker.Info().Placement == l.e.ID)) {
		return nil // adopted while it was loading
	}
	if l.cold {
		return l.spawn()
	}
	if l.worker == nil {
		if err := l.unpark(); err != nil {
			return err
		}
	}
	f, err := l.claim.Endpoint.Listen()
	if err != nil {
		return err
	}
	env := map[string]string{}
	maps.Copy(env, l.claim.Start.Env)
	maps.Copy(env, l.trace.Env())
	begin := time.Now()
	p := l.e.Placement()
	if err := l.worker.Load(l.ctx, Load{Placement: p.ID, Attempt: p.Attempt, Argv: l.claim.Start.Argv, Env: env, Listener: f}); err != nil {
		if dead := l.lastWord(time.Second); dead != nil {
			return dead
		}
		return fmt.Errorf("load model: %w", err)
	}
	l.phase("attach", "agent", begin, time.Since(begin))
	l.claim.Endpoint.HandOver()
	return nil
}

// unpark takes the parked worker over, or forks another when it has just died.
func (l *life) unpark() error {
	for range 2 { // the claimed one, then one more
		p := l.parked
		l.parked = nil
		if p == nil {
			made := make(chan *parked, 1)
			l.d.post(func() { q := l.d.fork(l.claim.Runtime); l.d.drop(q); made <- q })
			select {
			case p = <-made:
			case <-l.d.stopped:
				return errStopped
			}
		}
		close(p.taken)
		if err := l.wait(p.done); err != nil {
			l.pending = p
			return err
		}
		<-p.let
		if p.err != nil {
			return fmt.Errorf("fork worker: %w", p.err)
		}
		if p.dead != nil {
			w := p.worker
			l.d.wg.Go(func() { _ = l.d.stop(w, 0) })
			continue
		}
		l.phase("fork", "zygote", p.begun, p.took)
		for _, ph := range p.phases {
			l.phase(ph.Name, ph.Proc, ph.Start, ph.Dur)
		}
		l.has(p.worker)
		return nil
	}
	return errors.New("the parked worker died, and so did the one forked in its place")
}

// spawn starts the engine cold.
func (l *life) spawn() error {
	env := append([]string(nil), l.claim.Start.FullEnv...)
	for k, v := range l.trace.Env() {
		env = append(env, k+"="+v)
	}
	begin := time.Now()
	w, err := l.d.cfg.Runtimes[l.claim.Runtime].Spawn(l.ctx, Spawn{
		ID: l.d.cfg.NewID(), Argv: l.claim.Start.ServeArgv, Env: env, Placement: l.e.ID, Attempt: l.e.Placement().Attempt,
	})
	if err != nil {
		return fmt.Errorf("start engine: %w", err)
	}
	l.phase("spawn", "agent", begin, time.Since(begin))
	l.has(w)
	return nil
}

// has makes w the life's worker, in the record first: a restarted agent must
// know whose it is.
func (l *life) has(w Worker) {
	_ = l.e.Update(false, func(r *Record) {
		r.Placement.Worker, r.WorkerRecord = w.Info().ID, w.Record()
	})
	l.d.cfg.Journal.Unpark(w.Info().ID)
	l.d.post(func() { l.shown = w })
	l.worker = w
}

// ready records the first token.
func (l *life) ready() error {
	if l.cold {
		if err := l.worker.Served(); err != nil {
			return err
		}
	}
	now := time.Now()
	var p placement.Placement
	_ = l.e.Update(false, func(r *Record) {
		r.Placement.State, _ = placement.Move(r.Placement.State, placement.Ready)
		r.Placement.StartSeconds = now.Sub(r.Received).Seconds()
		r.Placement.Updated = now
		p = r.Placement
	})
	l.trace.Ready(now)
	l.d.cfg.Observe.Started(p.Tier, p.StartSeconds)
	l.d.cfg.Observe.Ended("ready")
	// The View first, then the event, then the line: who hears of it may look.
	_ = l.d.ask(l.ctx, func() { delete(l.d.backoff, l.claim.Runtime) })
	l.d.emit("placement.ready", p.ID, p.Worker, "%s in %.2f s (%s), endpoint %s", p.Request.Name, p.StartSeconds, p.Tier, p.Endpoint)
	l.line(placement.EventReady, "")
	return nil
}

// traceID reads the trace's id from what it tells the engine.
func traceID(t Trace) string {
	if f := strings.Split(t.Env()["TRACEPARENT"], "-"); len(f) == 4 {
		return f[1]
	}
	return ""
}
