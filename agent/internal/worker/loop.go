package worker

import (
	"context"
	"os"
	"slices"
	"time"
)

// Bounds of a worker's end.
const (
	pairTime    = 300 * time.Millisecond // for the zygote to end the other half, before we do
	explainTime = 350 * time.Millisecond // for the zygote to say how a process ended
)

// loopState belongs to the worker's loop.
//
// Invariants: placement != "" iff a load was accepted; len(deaths) > 0 implies
// state is Draining or Spawning or Dead; state == Dead iff reaped and explained.
type loopState struct {
	ctx     context.Context
	state   State
	rec     Record
	procs   map[string]Proc  // by role, as far as they were started
	halves  map[string]State // what each half says it is
	conns   map[string]*conn // nil when a half cannot be reached
	ending  ending
	stopped bool // Stop was called, no matter when
	drained bool // the drain was sent

	killAt    time.Time // zero: nobody is to be killed
	explainAt time.Time // zero: nobody has died
	reaping   bool      // reapers for all of procs were started
	reapers   int
	reaped    bool // every process is proven gone
	explained bool
	over      chan struct{} // nil: nobody follows the log; closed when it ends
	told      bool          // over is closed
	followed  bool          // the follower is done
	cause     string
	onMove    func() // somebody waits for the next state
}

func newLoopState(rec Record) loopState {
	s := loopState{
		state: rec.State, rec: rec, procs: map[string]Proc{}, halves: map[string]State{}, conns: map[string]*conn{},
		ending: ending{exits: map[string]exit{}, errors: map[string]string{}},
	}
	return s
}

// loop is the one writer of the worker's state. It ends when the worker is dead,
// or when Run ends: then it touches no process.
func (w *Worker) loop(ctx context.Context) {
	defer w.helpers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.ctx = ctx
	defer close(w.ended)
	defer close(w.events.ch)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for w.state != Dead {
		timer.Reset(w.nextTimer())
		select {
		case <-ctx.Done():
			w.rt.forget(w)
			return
		case f := <-w.inbox:
			f()
		case <-timer.C:
		}
		w.settle()
		w.publish()
	}
}

// nextTimer is when the loop must look again though nothing happened.
func (w *Worker) nextTimer() time.Duration {
	next := time.Hour
	if !w.killAt.IsZero() && !w.reaping {
		next = min(next, time.Until(w.killAt))
	}
	if !w.explainAt.IsZero() && !w.explained {
		next = min(next, time.Until(w.explainAt))
	}
	return max(next, 0)
}

// settle does what is due: kill, explain, bury.
func (w *Worker) settle() {
	now := time.Now()
	if !w.killAt.IsZero() && !now.Before(w.killAt) && !w.reaping {
		w.reaping = true
		w.reapers++
		roots, group := w.started(), w.rec.CGroup
		w.help(func(ctx context.Context) { w.reap(ctx, roots, group) })
	}
	known := w.reaped && len(w.procs) == 0 || len(w.ending.deaths) > 0 && (w.causeKnown() || !now.Before(w.explainAt))
	if known && !w.explained {
		w.explain()
	}
	w.followLog()
	if w.reaped && w.explained && (w.over == nil || w.followed) {
		w.bury()
	}
}

// followLog has the log followed from the placement on, and read to its end when all
// that writes it is gone. A parked worker's lines are nobody's yet.
func (w *Worker) followLog() {
	if w.over == nil && w.rec.Placement != "" && w.rt.cfg.Lines != nil {
		w.over = make(chan struct{})
		rec, over := w.rec, w.over
		w.help(func(ctx context.Context) { w.follow(ctx, rec, over) })
	}
	if w.over != nil && w.reaped && !w.told {
		w.told = true
		close(w.over)
	}
}

// causeKnown reports whether waiting longer could change the cause. A stopped
// worker has its cause; a half's last words come before its connection ends.
func (w *Worker) causeKnown() bool {
	if w.ending.asked {
		return true
	}
	for _, role := range w.ending.deaths {
		if w.conns[role] != nil {
			return false
		}
	}
	for _, x := range w.ending.exits {
		if x.Cause != "pair" && (x.Code == nil || *x.Code != pairLost) {
			return true
		}
	}
	return len(w.ending.exits) == len(w.procs)
}

func (w *Worker) explain() {
	w.explained = true
	w.ending.log = tail(w.log, 40)
	w.cause = w.ending.words()
	if w.ending.asked {
		return
	}
	w.rt.log.Warn("worker died", "worker", w.id, "placement", w.rec.Placement, "cause", w.cause)
	if w.cause != w.ending.reason { // that one was reported when it came up
		w.fault(w.cause, tail(w.log, 20))
	}
}

// fault reports what went wrong; the first one is kept for Info.
func (w *Worker) fault(message, detail string) {
	w.events.send(Event{Kind: EventError, Message: message, Detail: detail})
	w.mu.Lock()
	if w.info.Error == "" {
		w.info.Error = message
	}
	w.mu.Unlock()
}

// bury is the last thing that happens to a worker.
func (w *Worker) bury() {
	w.move(Dead)
	w.rt.forget(w)
	if err := os.RemoveAll(w.dir()); err != nil {
		w.rt.log.Warn("worker folder not removed", "worker", w.id, "err", err)
	}
	w.rt.task(func(ctx context.Context) { // the last worker of a dead generation takes its folder along
		w.rt.clear(ctx, w.gen)
		w.rt.pruneLogs()
	})
	w.events.send(Event{Kind: EventDead, Message: w.cause, Detail: tail(w.log, 20)})
	w.publish()
	close(w.done)
}

// move takes one edge of the table and reports it.
func (w *Worker) move(to State) {
	if w.state == to {
		return
	}
	next, err := Move(w.state, to)
	if err != nil {
		w.rt.log.Error("illegal transition refused", "worker", w.id, "err", err)
		onIllegal(err)
		return
	}
	w.rt.log.Debug("worker", "worker", w.id, "from", w.state, "to", next, "placement", w.rec.Placement)
	w.state, w.rec.State = next, next
	w.mu.Lock()
	w.info.StateSince = time.Now()
	w.mu.Unlock()
	w.publish() // before the event: who reads that finds Info as new
	if next != Dead {
		w.events.send(Event{Kind: EventState, Message: string(next)})
		w.save()
	}
	if w.onMove != nil {
		w.onMove()
	}
}

// save keeps the record beside the sockets. It is a second witness: the agent's
// journal is the first, so a failure is logged and no more.
func (w *Worker) save() {
	if err := saveRecord(w.dir(), w.rec); err != nil {
		w.rt.log.Warn("worker record not written", "worker", w.id, "err", err)
	}
}

// publish copies the loop's state for readers.
func (w *Worker) publish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.info.Record = w.rec
	w.info.EnginePID, w.info.APIPID = w.rec.Engine.PID, w.rec.API.PID
}

func (w *Worker) started() (roots []Proc) {
	for _, p := range w.procs {
		roots = append(roots, p)
	}
	return roots
}

// has says which process a role is; it is watched from here on. When the worker
// is being killed already, the new process is killed with it.
func (w *Worker) has(role string, p Proc) {
	w.procs[role] = p
	if role == roleAPI {
		w.rec.API = p
	} else {
		w.rec.Engine = p
	}
	if w.rec.CGroup == "" {
		w.rec.CGroup = cgroupOf(p, w.id)
	}
	w.save()
	w.reaping = false // if there is a reaper, it does not know of this process
	w.help(func(ctx context.Context) { w.watch(ctx, role, p) })
	if role != roleServe {
		w.help(func(ctx context.Context) { w.talk(ctx, role, p) })
	}
}

// help runs what may block beside the loop; it ends with the loop.
func (w *Worker) help(f func(context.Context)) {
	w.helpers.Go(func() {
		f(w.ctx)
	})
}

// watch posts the end of one process.
func (w *Worker) watch(ctx context.Context, role string, p Proc) {
	fd, err := p.open()
	if err == nil {
		defer fd.close()
		_ = fd.wait(ctx) // it ends with the process or with ctx
	}
	if ctx.Err() == nil {
		w.post(func() { w.died(role) })
	}
}

// died notes the end of one process. The zygote ends the other half; if it does
// not, because it is gone itself, we do.
func (w *Worker) died(role string) {
	if slices.Contains(w.ending.deaths, role) {
		return
	}
	w.ending.deaths = append(w.ending.deaths, role)
	if len(w.ending.deaths) == 1 {
		w.explainAt = time.Now().Add(explainTime)
		if w.state != Spawning {
			w.move(Draining)
		}
	}
	wait := pairTime
	if len(w.ending.deaths) == len(w.procs) {
		wait = 0
	}
	w.killWithin(wait)
}

// killWithin has everything killed, and proven gone, after d at the latest.
func (w *Worker) killWithin(d time.Duration) {
	if at := time.Now().Add(d); w.killAt.IsZero() || at.Before(w.killAt) {
		w.killAt = at
	}
}

// exited is the zygote's word on how a process ended.
func (w *Worker) exited(x exit) {
	if p, ok := w.procs[x.Role]; ok && p != x.Proc {
		return
	}
	w.ending.exits[x.Role] = x
}
