package device

import (
	"time"

	"warmd/placement"
)

// What a restarted agent finds is given to the loop before Run, by these.
// Nothing here ends a worker: what cannot be explained keeps its slot.

// AdoptParked takes a living, unclaimed worker. ending says that the old agent
// had already decided to end it.
func (d *Device) AdoptParked(runtime string, w Worker, ending bool) {
	p := newParked(d, w.Info().ID, runtime)
	p.state, p.worker = Warm, w
	if ending {
		p.state = Retiring
	}
	close(p.done)
	d.parked = append(d.parked, p)
	d.publish()
}

// AdoptPlacement takes a placement that was accepted and is not over. w is its
// living worker, nil when it has none: a placement that was ready has lost it
// then; one that was loading starts again by c.Start. problem says why it cannot
// go on at all.
func (d *Device) AdoptPlacement(c Claim, w Worker, problem error) {
	r := c.Entry.Record()
	l := &life{
		d: d, e: c.Entry, claim: c, adopted: true, cold: r.Placement.Tier == placement.TierCold, trace: noTrace{}, since: time.Now(),
		accepted: make(chan *placement.Error, 1), resting: make(chan struct{}, 1), worker: w, shown: w,
	}
	if problem == nil && w == nil && (r.Placement.State == placement.Ready || len(r.WorkerRecord) > 0) {
		problem = &death{cause: "it was gone when the agent came back"}
	}
	switch {
	case r.Ending != "":
		l.fate = &ending{state: r.Ending, reason: r.Placement.Reason}
		if r.Ending == placement.Failed {
			l.fate.code = placement.CodeStartFailed
		}
	case problem != nil && r.Placement.State == placement.Ready:
		l.fate = l.lost(problem)
	case problem != nil:
		l.fate = l.failure(problem)
	case r.Placement.State == placement.Ready:
		c.Entry.Feed.Add(lastLine(c.Entry.rec.Load(), nil))
	}
	if d.cfg.Resume != nil && r.Placement.State != placement.Ready {
		if t := d.cfg.Resume(c.Entry.ID); t != nil {
			l.trace = t
		}
	}
	d.busy[c.Entry.ID] = l
	c.Entry.owner.Store(d)
	d.publish()
}

// AdoptStranger quarantines a worker that nobody can explain, until it is gone.
// w may be nil; alive then says whether it is still there.
func (d *Device) AdoptStranger(info Info, problem string, w Worker, alive func() bool) {
	s := newStranger(d, info, problem, w)
	s.alive = alive
	d.strange[info.ID] = s
	d.publish()
}

// stranger is a worker that holds a slot and that nobody can explain.
type stranger struct {
	d       *Device
	info    Info
	problem string
	worker  Worker
	alive   func() bool
	ours    bool // it was parked, and its end did not succeed: that is tried again
	since   time.Time
}

func newStranger(d *Device, info Info, problem string, w Worker) *stranger {
	return &stranger{d: d, info: info, problem: problem, worker: w, since: time.Now()}
}

// watch waits until the stranger is gone by itself, and gives its slot back.
func (s *stranger) watch() {
	for !s.gone() {
		if s.d.ctx.Err() != nil {
			return
		}
	}
	s.d.post(func() {
		delete(s.d.strange, s.info.ID)
		s.d.emit("slot.free", "", s.info.ID, "the quarantined worker is gone")
	})
}

// gone waits a while, and reports whether the stranger has gone.
func (s *stranger) gone() bool {
	if s.ours {
		return s.d.sleep(s.d.cfg.Timings.Reprove) && s.d.stop(s.worker, 0) == nil
	}
	if s.worker == nil {
		return s.d.sleep(s.d.cfg.Timings.Reprove) && !s.alive()
	}
	select {
	case <-s.d.ctx.Done():
		return false
	case ev, ok := <-s.worker.Events():
		return !ok || ev.Kind == EventDead
	}
}

func (s *stranger) view() WorkerView {
	v := WorkerView{Info: s.info, Since: s.since, Problem: s.problem, Quarantined: true}
	v.State = "quarantined"
	return v
}
