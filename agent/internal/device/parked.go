package device

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// maxFails is how many failed forks in a row bring the pause.
const maxFails = 3

// parked is one unclaimed worker from its fork to its claim or its end.
//
// The loop writes state and since; the fork's goroutine writes worker, err, begun
// and took before it closes done, and nobody reads them earlier; the watcher
// writes phases and dead before it closes let.
type parked struct {
	d           *Device
	id, runtime string
	state       ParkState
	since       time.Time

	done   chan struct{} // the fork is over
	worker Worker
	err    error
	begun  time.Time // of the fork, and how long it took
	took   time.Duration

	taken   chan struct{} // a life has it: the watcher lets go
	let     chan struct{} // the watcher has let go; phases and dead are the life's now
	phases  []PhaseEvent
	dead    *Event
	retired chan struct{} // closed when it is gone
}

func newParked(d *Device, id, runtime string) *parked {
	return &parked{
		d: d, id: id, runtime: runtime, state: Forking, since: time.Now(),
		done: make(chan struct{}), taken: make(chan struct{}), let: make(chan struct{}), retired: make(chan struct{}),
	}
}

// fork starts a worker. It runs on the loop and does not wait.
func (d *Device) fork(runtime string) *parked {
	p := newParked(d, d.cfg.NewID(), runtime)
	d.parked = append(d.parked, p)
	ctx := d.ctx
	d.wg.Go(func() {
		fctx, cancel := context.WithTimeout(ctx, d.cfg.Timings.Fork)
		p.begun = time.Now()
		p.worker, p.err = d.cfg.Runtimes[runtime].Fork(fctx, p.id)
		p.took = time.Since(p.begun)
		cancel()
		if p.err == nil {
			d.cfg.Journal.Park(ParkedRecord{Worker: p.id, Device: d.cfg.ID, Runtime: runtime, Record: p.worker.Record()})
		}
		close(p.done)
		if p.err != nil {
			close(p.let)
			if ctx.Err() == nil {
				d.post(func() { d.forkFailed(p, p.err) })
			}
			return
		}
		d.post(func() { d.forked(p) })
		p.watch()
	})
	return p
}

func (d *Device) forked(p *parked) {
	if p.state == Forking {
		p.state = Warm
	}
	p.since = time.Now()
	if slices.Contains(d.parked, p) {
		d.emit("worker.warm", "", p.id, "a worker of runtime %s is parked", p.runtime)
	}
}

// forkFailed forgets a worker that never became warm, or did not stay so.
func (d *Device) forkFailed(p *parked, err error) {
	d.drop(p)
	b := d.backoff[p.runtime]
	if b == nil {
		b = &backoff{first: d.cfg.Timings.Retry, most: d.cfg.Timings.MaxRetry}
		d.backoff[p.runtime] = b
	}
	b.failed(err)
	d.emit("worker.dead", "", p.id, "a worker of runtime %s did not become warm: %v", p.runtime, err)
}

func (d *Device) drop(p *parked) {
	d.parked = slices.DeleteFunc(d.parked, func(o *parked) bool { return o == p })
}

// watch reads the events of a parked worker until a life takes it or it dies.
func (p *parked) watch() {
	defer close(p.let)
	for {
		select {
		case <-p.taken:
			return
		case <-p.d.ctx.Done():
			return
		case ev, ok := <-p.worker.Events():
			switch {
			case !ok:
				return // the runtime has stopped looking
			case ev.Kind == EventDead:
				p.dead = &ev
				p.d.cfg.Journal.Unpark(p.id)
				p.d.post(func() { p.d.parkedDied(p) })
				return
			case ev.Kind == EventPhase:
				p.phases = append(p.phases, ev.Phase)
			}
		}
	}
}

func (d *Device) parkedDied(p *parked) {
	if !slices.Contains(d.parked, p) || p.state == Retiring {
		return // a life has it and finds out by itself, or it dies on purpose
	}
	if time.Since(p.since) < d.cfg.Timings.Settled {
		d.forkFailed(p, fmt.Errorf("%s", p.dead.Message))
	} else {
		d.drop(p)
		d.emit("worker.dead", "", p.id, "a parked worker died: %s", p.dead.Message)
	}
	w := p.worker
	d.wg.Go(func() { _ = d.stop(w, 0) }) // its other half, if the zygote is gone, too
}

// retire ends a parked worker. It runs on the loop and does not wait.
func (d *Device) retire(id string) {
	i := slices.IndexFunc(d.parked, func(p *parked) bool { return p.id == id })
	if i < 0 {
		return
	}
	p := d.parked[i]
	p.state = Retiring
	d.end(p)
}

func (d *Device) end(p *parked) {
	d.wg.Go(func() {
		err := d.stop(p.worker, 0)
		if err == nil {
			d.cfg.Journal.Unpark(p.id)
			close(p.retired)
		}
		d.post(func() {
			d.drop(p)
			if err != nil && d.ctx.Err() == nil {
				s := newStranger(d, p.worker.Info(), "could not be ended: "+err.Error(), p.worker)
				s.ours = true
				d.strange[p.id] = s
				d.wg.Go(s.watch)
			}
		})
	})
}

// retiring lists what must be gone before a load may take the memory. On a CPU nothing
// must: a parked worker shares nearly all of its memory with its zygote.
func (d *Device) retiring() (out []<-chan struct{}) {
	if d.cfg.Kind == "cpu" {
		return nil
	}
	for _, p := range d.parked {
		if p.state == Retiring {
			out = append(out, p.retired)
		}
	}
	return out
}

// stop ends a worker, bounded.
func (d *Device) stop(w Worker, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(d.ctx, grace+d.cfg.Timings.Stop)
	defer cancel()
	return w.Stop(ctx, grace)
}

// backoff spaces out forks that fail. The first maxFails-1 are tried again at
// once: a single accident must not cost a second of warmth.
type backoff struct {
	first, most time.Duration
	fails       int
	last        error
	until       time.Time
}

func (b *backoff) failed(err error) {
	b.fails++
	b.last = err
	if b.fails >= maxFails {
		b.until = time.Now().Add(min(b.first<<min(b.fails-maxFails, 16), b.most))
	}
}

// due is when the next fork may be tried; zero means now.
func (b *backoff) due() time.Time {
	if b == nil || !b.until.After(time.Now()) {
		return time.Time{}
	}
	return b.until
}

// isWarm reports whether the fork is over and went well. Any goroutine may ask.
func (p *parked) isWarm() bool {
	select {
	case <-p.done:
		return p.err == nil
	default:
		return false
	}
}

func (p *parked) view() WorkerView {
	v := WorkerView{Info: Info{ID: p.id, Runtime: p.runtime, State: string(p.state)}, Since: p.since}
	if p.isWarm() {
		v.Info = p.worker.Info()
		v.State = string(p.state)
	}
	return v
}
