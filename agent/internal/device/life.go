package device

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"warmd/placement"
)

// logLines of a dead engine go into its error.
const logLines = 20

// life is one accepted claim, from the fsync to the free slot. It is one
// goroutine that runs down this file: start, serve, end. It owns its worker and
// is the only writer of its entry's record (an attempt number aside).
type life struct {
	d     *Device
	e     *Entry
	claim Claim

	// How to start; the loop sets these before run.
	parked     *parked
	cold       bool
	coldReason string
	after      []<-chan struct{} // memory that must come back before the load
	adopted    bool              // accepted by an earlier agent: its record is on the disk
	fate       *ending           // adopted only to be ended this way

	accepted chan *placement.Error // one answer: nil, or the refusal
	ctx      context.Context       // ends with an *ending, or with the agent
	cancel   context.CancelCauseFunc

	worker  Worker
	pending *parked // taken, but its fork was still under way when the life ended
	trace   Trace
	since   time.Time
	lastErr *Event // what the worker said before it died
	deaf    bool   // its events have ended without its death
	// freeBefore is the device's free memory when the slot was taken.
	freeBefore int64

	// The loop's: the worker for the View, and why the slot cannot be given back.
	shown       Worker
	quarantined string
}

// ending says how a life is to end. It is the cause of its context.
type ending struct {
	state  placement.State
	code   placement.Code
	reason string
	hint   string
	detail string
	grace  time.Duration
}

func (e *ending) Error() string { return e.reason }

func newLife(d *Device, c Claim) *life {
	l := &life{d: d, e: c.Entry, claim: c, accepted: make(chan *placement.Error, 1), trace: noTrace{}, since: time.Now(), freeBefore: d.free.Load()}
	l.ctx, l.cancel = context.WithCancelCause(d.ctx)
	return l
}

// quit ends the life; the first call decides how.
func (l *life) quit(e *ending) { l.cancel(e) }

// run is the whole life.
func (l *life) run() {
	defer l.cancel(nil)
	if !l.adopted {
		if refusal := l.accept(); refusal != nil {
			l.giveBack()
			l.leave()
			l.accepted <- refusal
			return
		}
		l.accepted <- nil
	}
	switch {
	case l.fate != nil:
		l.quit(l.fate)
	case l.e.Placement().State != placement.Ready:
		guarded := make(chan struct{})
		l.d.wg.Go(func() { l.guard(guarded) })
		if err := l.start(); err != nil {
			l.quit(l.failure(err))
		}
		close(guarded)
	}
	end := l.serve()
	if end == nil {
		return // the agent ends; the engine does not notice
	}
	l.end(end)
}

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
	token := make(chan error, 1)
	l.d.wg.Go(func() { token <- l.d.cfg.Probe(ctx, p.Endpoint, p.Request.Name) })
	for {
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
	for k, v := range l.claim.Start.Env {
		env[k] = v
	}
	for k, v := range l.trace.Env() {
		env[k] = v
	}
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
	l.d.post(func() { delete(l.d.backoff, l.claim.Runtime) })
	l.line(placement.EventReady, "")
	l.d.emit("placement.ready", p.ID, p.Worker, "%s in %.2f s (%s), endpoint %s", p.Request.Name, p.StartSeconds, p.Tier, p.Endpoint)
	return nil
}

// serve waits for the end of a placement: a release, the death of its worker, or
// a start that failed. nil means that the agent ends.
func (l *life) serve() *ending {
	for {
		select {
		case <-l.ctx.Done():
			if end, ok := errors.AsType[*ending](context.Cause(l.ctx)); ok {
				return end
			}
			return nil
		case ev, ok := <-l.events():
			if dead := l.hear(ev, ok); dead != nil {
				return l.lost(dead)
			}
		}
	}
}

// line adds to the feed, with the record and the capacity of this moment.
func (l *life) line(event, message string) {
	p := l.e.Placement()
	var c *placement.Capacity
	if l.d.cfg.Capacity != nil {
		now := l.d.cfg.Capacity()
		c = &now
	}
	l.e.Feed.Add(placement.Progress{Event: event, Placement: &p, Capacity: c, Message: message})
}

// phase records one phase in the trace and the feed.
func (l *life) phase(name, proc string, start time.Time, dur time.Duration) {
	r := l.e.Record()
	l.trace.Phase(name, proc, start, dur)
	ph := placement.Phase{Name: name, Proc: proc, Start: start.Sub(r.Received).Seconds(), Duration: dur.Seconds()}
	ph.Before = ph.Start < 0 && ph.Start+ph.Duration <= 0
	l.e.Feed.Add(placement.Progress{Event: placement.EventPhase, Phase: &ph})
}

// wait waits for all of the channels.
func (l *life) wait(chs ...<-chan struct{}) error {
	for _, ch := range chs {
		select {
		case <-ch:
		case <-l.ctx.Done():
			return context.Cause(l.ctx)
		}
	}
	return nil
}

// traceID reads the trace's id from what it tells the engine.
func traceID(t Trace) string {
	if f := strings.Split(t.Env()["TRACEPARENT"], "-"); len(f) == 4 {
		return f[1]
	}
	return ""
}
