package worker

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The kinds of an Event.
const (
	EventPhase = "phase" // a measured piece of the start
	EventState = "state" // Message is the new State
	EventError = "error" // something went wrong; Message says what in one line
	EventDead  = "dead"  // last: every process is proven gone; Message is the cause, Detail the last log lines
)

// Event is something that happened to a worker.
type Event struct {
	Kind    string     `json:"kind"`
	At      time.Time  `json:"at"`
	Phase   PhaseEvent `json:"phase,omitzero"`
	Message string     `json:"message,omitempty"`
	Detail  string     `json:"detail,omitempty"`
}

// PhaseEvent is one measured piece of a start. Warm ones were done before there
// was a placement.
type PhaseEvent struct {
	Proc  string        `json:"proc"` // engine, api
	Name  string        `json:"name"`
	Start time.Time     `json:"start"`
	Dur   time.Duration `json:"dur"`
	Warm  bool          `json:"warm"`
}

// Room for events that nobody has read yet. Phases may fill all but eventReserve;
// a worker makes at most 7 state events (the table has no cycle but sleeping),
// maxErrors errors and one dead, so those always find room unless it sleeps and
// wakes for hours unread: then state events are dropped like phases.
const (
	eventRoom    = 256
	eventReserve = 32
	maxErrors    = 8
)

// events is a bounded queue with one writer, the worker's loop. It never blocks.
type events struct {
	ch      chan Event
	dropped atomic.Int64
	errors  int
}

func newEvents() *events { return &events{ch: make(chan Event, eventRoom)} }

func (e *events) send(ev Event) {
	ev.At = time.Now()
	room := cap(e.ch) - len(e.ch) // only grows under us: we are the one writer
	switch {
	case ev.Kind == EventPhase && room <= eventReserve,
		ev.Kind == EventState && room <= 1+maxErrors,
		ev.Kind == EventError && e.errors >= maxErrors:
		e.dropped.Add(1)
		return
	case ev.Kind == EventError:
		e.errors++
	}
	e.ch <- ev
}

// monotonic turns CLOCK_MONOTONIC nanoseconds, which the Python side sends, into
// a time of ours.
func monotonic(ns int64) time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(ns - ts.Nano()))
}
