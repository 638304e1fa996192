package worker

import (
	"context"
	"encoding/json"
	"time"
)

// rank orders what a half says it is: words that arrive late change nothing. Sleeping
// is as far as serving, and the API half alone says it.
var rank = map[State]int{Warm: 1, Loading: 2, Serving: 3, Sleeping: 3, Draining: 4}

// talk keeps one half's control connection open for as long as the half lives. A
// dropped connection is opened again; the hello tells what was missed.
func (w *Worker) talk(ctx context.Context, role string, p Proc) {
	socket := w.rt.halfSocket(w.gen, w.id, role)
	seen := 0 // phases already reported
	for delay := 2 * time.Millisecond; ctx.Err() == nil && p.Alive(); delay = min(2*delay, redialTime) {
		c, err := dial(ctx, socket)
		if err == nil {
			w.converse(ctx, role, p, c, &seen)
		}
		pause(ctx, delay)
	}
}

// converse greets and then delivers events until the connection ends.
func (w *Worker) converse(ctx context.Context, role string, p Proc, c *conn, seen *int) {
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.read(func(kind string, raw []byte) { w.heard(role, kind, raw) })
	}()
	defer func() {
		c.close()
		<-ended
		w.post(func() { delete(w.conns, role) })
	}()
	// No deadline of its own: a half that makes its CUDA context answers after it,
	// one that hangs is killed by whoever waits for the worker.
	var h halfHello
	if err := c.call(ctx, "hello", map[string]int{"proto": Proto}, &h); err != nil {
		w.rt.log.Debug("half does not greet", "worker", w.id, "role", role, "err", err)
		return
	}
	if h.Worker != w.id || h.Role != role || h.Proc != p {
		w.rt.log.Error("another process answers on a worker's socket", "worker", w.id, "role", role, "answers", h.Worker, "pid", h.PID)
		return
	}
	fresh := h.Phases[min(*seen, len(h.Phases)):]
	*seen = len(h.Phases)
	w.post(func() {
		w.conns[role] = c
		for _, raw := range fresh {
			w.phase(raw)
		}
		if h.Error != nil {
			w.saidError(role, *h.Error)
		}
		w.isNow(role, h.State)
	})
	<-ended
}

// heard is called in the order in which a half speaks.
func (w *Worker) heard(role, kind string, raw []byte) {
	switch kind {
	case "phase":
		w.post(func() { w.phase(raw) })
	case "state":
		var e struct {
			State State `json:"state"`
		}
		if json.Unmarshal(raw, &e) == nil {
			w.post(func() { w.isNow(role, e.State) })
		}
	case "error":
		var e halfError
		if json.Unmarshal(raw, &e) == nil {
			w.post(func() { w.saidError(role, e) })
		}
	}
}

func (w *Worker) phase(raw []byte) {
	var e struct {
		Proc    string `json:"proc"`
		Name    string `json:"name"`
		StartNS int64  `json:"start_ns"`
		DurNS   int64  `json:"dur_ns"`
		Warm    bool   `json:"warm"`
	}
	if json.Unmarshal(raw, &e) != nil {
		return
	}
	w.events.send(Event{Kind: EventPhase, Phase: PhaseEvent{
		Proc: e.Proc, Name: e.Name, Start: monotonic(e.StartNS), Dur: time.Duration(e.DurNS), Warm: e.Warm,
	}})
}

func (w *Worker) saidError(role string, e halfError) {
	if w.ending.errors[role] != "" {
		return // the hello after an event repeats it
	}
	w.ending.errors[role] = e.Message
	w.fault(e.Message, e.Detail)
}

// isNow takes a half's word on its state and draws the worker's from both.
func (w *Worker) isNow(role string, s State) {
	if role == roleAPI && (s == Sleeping || s == Serving) && rank[w.halves[role]] == rank[s] {
		w.rested(s)
		return
	}
	if rank[s] <= rank[w.halves[role]] {
		return
	}
	w.halves[role] = s
	e, a := rank[w.halves[roleEngine]], rank[w.halves[roleAPI]]
	if e == 0 || a == 0 || len(w.ending.deaths) > 0 {
		return
	}
	if w.state == Spawning {
		w.move(Warm)
	}
	if w.state == Warm && max(e, a) > rank[Warm] {
		w.move(Loading)
	}
	if w.state == Loading && e == rank[Serving] && a == rank[Serving] {
		w.move(Serving)
	}
	if w.state == Serving || w.state == Sleeping {
		w.rested(w.halves[roleAPI]) // an adopted one may have slept, or woken, unseen
	}
	if max(e, a) == rank[Draining] && w.state != Draining {
		w.move(Draining)
	}
}
