package device

import (
	"fmt"
	"time"

	"warmd/placement"
)

// end stops the worker, proves that nothing of it is left, gives the slot back
// and reports. A death is reported first: whoever uses the endpoint must know
// within a second, and proving memory free may take longer.
func (l *life) end(end *ending) {
	if end.detail == "" && end.code != "" && l.worker != nil {
		end.detail = l.worker.LogTail(logLines)
	}
	_ = l.e.Update(false, func(r *Record) { r.Ending, r.Placement.Reason = end.state, end.reason })
	lost := end.code == placement.CodeWorkerLost
	if lost {
		l.report(end)
	}
	l.d.post(func() {}) // the View shows it draining
	err := l.clear(end.grace)
	if err != nil && l.d.ctx.Err() != nil {
		return // the agent ends; the next one reads Ending and goes on
	}
	if err == nil {
		l.leave()
	} else {
		l.quarantine(err)
	}
	if !lost {
		l.report(end)
	}
	l.e.book.Ended(l.e)
	for err != nil {
		if !l.d.sleep(l.d.cfg.Timings.Reprove) {
			return
		}
		if err = l.clear(0); err == nil {
			l.leave()
			l.d.emit("slot.free", l.e.ID, "", "the slot is proven free now")
		}
	}
}

// clear stops the worker and proves it gone; nil means that the slot is free.
func (l *life) clear(grace time.Duration) error {
	if p := l.pending; p != nil {
		select {
		case <-p.done:
			l.pending = nil
			<-p.let
			if p.err == nil {
				l.worker = p.worker
			}
		case <-l.d.ctx.Done():
			return l.d.ctx.Err()
		}
	}
	l.claim.Endpoint.HandOver() // clients in the backlog of a start that failed
	if l.worker != nil {
		if err := l.d.stop(l.worker, grace); err != nil {
			return fmt.Errorf("stop worker %s: %w", l.worker.Info().ID, err)
		}
		l.d.cfg.Journal.Unpark(l.worker.Info().ID)
		if err := l.d.proveFree(l.worker.Info().PIDs(), l.freeBefore); err != nil {
			return err
		}
	}
	l.claim.Endpoint.Close()
	return nil
}

// leave gives the slot back; when it returns the View shows it free and the
// refill is under way.
func (l *life) leave() {
	_ = l.d.ask(l.d.ctx, func() { delete(l.d.busy, l.e.ID) })
}

// quarantine keeps the slot, with the reason.
func (l *life) quarantine(err error) {
	_ = l.d.ask(l.d.ctx, func() { l.quarantined = err.Error() })
	l.d.emit("slot.quarantined", l.e.ID, "", "%v", err)
}

// giveBack returns the worker of a claim that was refused after all.
func (l *life) giveBack() {
	p := l.parked
	if p == nil {
		return
	}
	l.parked = nil
	_ = l.d.ask(l.d.ctx, func() {
		select {
		case <-p.let: // dead meanwhile
			if p.err == nil {
				l.d.wg.Go(func() { _ = l.d.stop(p.worker, 0) })
			}
		default:
			l.d.parked = append([]*parked{p}, l.d.parked...) // the oldest again
		}
	})
}

// report writes the end down and tells it.
func (l *life) report(end *ending) {
	started := false
	_ = l.e.Update(false, func(r *Record) {
		started = r.Placement.State == placement.Ready
		r.Placement.State, _ = placement.Move(r.Placement.State, end.state)
		r.Placement.Reason, r.Placement.Hint, r.Placement.Updated = end.reason, end.hint, time.Now()
		r.Ending, r.Error = end.state, end.error()
	})
	rec := l.e.rec.Load()
	p := &rec.Placement
	if !started {
		l.trace.Fail(end.reason)
	}
	result := string(end.code)
	if result == "" {
		result = string(p.State)
	}
	l.d.cfg.Observe.Ended(result)
	l.d.emit("placement."+string(p.State), p.ID, p.Worker, "%s", end.reason)
	var c *placement.Capacity
	if l.d.cfg.Capacity != nil {
		now := l.d.cfg.Capacity()
		c = &now
	}
	l.e.Feed.Add(lastLine(rec, c))
}

func (e *ending) error() *placement.Error {
	code := e.code
	if code == "" {
		code = placement.CodeReleased
	}
	return &placement.Error{Code: code, Message: e.reason, Hint: e.hint, Detail: e.detail}
}

// lastLine is the line that ends the stream of a placement in a final state. It is
// made of the record, not of copies: thousands of ended placements are remembered.
func lastLine(r *Record, c *placement.Capacity) placement.Progress {
	p := &r.Placement
	out := placement.Progress{Event: placement.EventFailed, Placement: p, Error: r.Error, Capacity: c}
	switch {
	case p.State == placement.Released:
		out.Event = placement.EventReleased
		if out.Error == nil {
			out.Error = &placement.Error{Code: placement.CodeReleased, Message: "placement " + p.ID + " was released"}
		}
	case p.State == placement.Ready:
		out.Event = placement.EventReady
	case out.Error == nil:
		out.Error = &placement.Error{Code: placement.CodeStartFailed, Message: p.Reason, Hint: p.Hint}
	}
	return out
}

// view is the life's worker for the View. It runs on the loop.
func (l *life) view() WorkerView {
	r := l.e.Record()
	v := WorkerView{Info: Info{ID: r.Placement.Worker, Runtime: r.Placement.Runtime, State: "loading"}, Since: l.since}
	if l.shown != nil {
		v.Info = l.shown.Info()
	}
	switch {
	case r.Ending != "":
		v.State = "draining"
	case r.Placement.State == placement.Ready && r.Placement.Sleeping:
		v.State = "sleeping"
	case r.Placement.State == placement.Ready:
		v.State = serving
	}
	v.Placement, v.Endpoint, v.Tier = l.e.ID, r.Placement.Endpoint, r.Placement.Tier
	if l.quarantined != "" {
		v.Quarantined, v.Problem, v.State = true, l.quarantined, "quarantined"
	}
	return v
}
