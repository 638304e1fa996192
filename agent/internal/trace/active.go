package trace

import (
	"cmp"
	"slices"
	"time"

	"warmd/agent/api/otlp"
	"warmd/placement"
)

// Active is the trace of one start. Its methods may be called at once, from any
// goroutine, and never block.
//
// Invariants (fields are guarded by the Recorder's mutex):
//
//	ended.IsZero()  iff  neither Ready nor Fail was called; the first of them wins
//	len(phases) <= maxPhases, no two with the same SpanID
type Active struct {
	rec   *Recorder
	head  placement.Trace // all but the phases
	begin time.Time       // as given: with its monotonic reading
	trace otlp.TraceID
	root  otlp.SpanID // parent of our phases, and of the engine's
	name  string      // of the file

	phases []placement.Phase
	ids    map[string]bool
	procs  map[int]int // pid of a process made for this start -> its phase; nil after Resume
	ended  time.Time   // when Ready or Fail was called, by our clock
	dirty  bool        // the file is behind
	save   time.Time   // when it is to catch up; an ended trace's at once
}

// Begin starts the trace of a placement. head says what is known (placement, node,
// device, runtime, model, tier); at is when the request came, and zero in all
// phases' times. A valid traceparent makes it a part of the caller's trace.
func (r *Recorder) Begin(head placement.Trace, traceparent string, at time.Time) *Active {
	a := &Active{rec: r, head: head, begin: at, ids: map[string]bool{}, procs: map[int]int{}, trace: otlp.NewTraceID(), root: otlp.NewSpanID()}
	a.head.Parent, a.head.Unsampled = "", false
	if caller, ok := otlp.ParseTraceparent(traceparent); ok {
		a.trace, a.head.Parent, a.head.Unsampled = caller.Trace, caller.Span.String(), !caller.Sampled
	}
	a.head.TraceID, a.head.Root = a.trace.String(), a.root.String()
	a.head.Begin = at.Round(0).UTC()
	a.head.Total, a.head.Failed, a.head.Phases = 0, "", nil
	// Sorts by time; the span id makes it unique, whatever the placement is called.
	a.name = a.head.Begin.Format("20060102T150405.000000000") + "-" + a.head.Root + fileSuffix

	r.mu.Lock()
	defer r.mu.Unlock()
	r.track(a)
	a.changed()
	return a
}

// track makes a trace one of the open ones.
func (r *Recorder) track(a *Active) {
	if len(r.open) >= maxOpen {
		r.opt.Log.Warn("trace dropped: too many starts are under way", "placement", r.open[0].head.Placement, "open", len(r.open))
		r.leave(r.open[0])
		r.open = slices.Delete(r.open, 0, 1)
	}
	r.open = append(r.open, a)
	r.join(a)
}

// TraceID is the trace's OpenTelemetry id, in hex.
func (a *Active) TraceID() string { return a.head.TraceID }

// Traceparent makes what a callee does a part of this trace. It always asks for
// sampling: an engine that thinks itself unsampled would send nothing.
func (a *Active) Traceparent() string {
	return otlp.Context{Trace: a.trace, Span: a.root, Sampled: true}.Traceparent()
}

// Env makes an engine send its spans here.
func (a *Active) Env() map[string]string { return otlp.Env(a.rec.Endpoint(), a.Traceparent()) }

// Phase adds one of our own phases, or one that a worker reported. A phase that
// was over before the start began is marked as such.
func (a *Active) Phase(name, proc string, start time.Time, d time.Duration) {
	p := phaseAt(name, proc, start.Sub(a.begin), d, otlp.NewSpanID(), a.root)
	a.rec.mu.Lock()
	defer a.rec.mu.Unlock()
	a.add(p)
}

// SetTier corrects how warm the start is, when that is known only after Begin.
func (a *Active) SetTier(t placement.Tier) {
	a.rec.mu.Lock()
	defer a.rec.mu.Unlock()
	a.head.Tier = t
}

// Ready ends the trace: the first token came out.
func (a *Active) Ready(at time.Time) {
	a.rec.mu.Lock()
	defer a.rec.mu.Unlock()
	if a.ended.IsZero() {
		a.head.Total = at.Sub(a.begin).Seconds()
		a.end()
	}
}

// Fail ends the trace: there is no first token, and this is why.
func (a *Active) Fail(reason string) {
	a.rec.mu.Lock()
	defer a.rec.mu.Unlock()
	if a.ended.IsZero() {
		a.head.Failed = cmp.Or(reason, "no reason given")
		a.end()
	}
}

// Trace is the trace as it stands.
func (a *Active) Trace() placement.Trace {
	a.rec.mu.Lock()
	defer a.rec.mu.Unlock()
	return a.snapshot()
}

func (a *Active) end() {
	a.ended, a.dirty = time.Now(), true
	a.rec.wake()
}

// add is false for a phase that is there already (exporters repeat a batch whose
// answer they missed), or for which there is no room.
func (a *Active) add(p placement.Phase) bool {
	if len(a.phases) >= maxPhases || a.ids[p.SpanID] {
		return false
	}
	a.ids[p.SpanID] = true
	a.phases = append(a.phases, p)
	a.changed()
	return true
}

// changed makes the keeper write the file again: soon, and not for every phase.
func (a *Active) changed() {
	if !a.dirty {
		a.dirty, a.save = true, time.Now().Add(saveDelay)
		a.rec.wake()
	}
}

// process adds what nobody reports: how long a process that was made for this start
// took from its birth to its first span. Spans come children first, so it may turn
// out shorter later.
func (a *Active) process(s otlp.Span, born time.Time, first time.Duration) {
	start := born.Sub(a.begin.Round(0))
	if a.procs == nil || born.IsZero() || start < 0 || first < start-birthTick {
		return // parked before the request, or its pid is another's by now
	}
	i, known := a.procs[s.PID]
	if !known {
		p := phaseAt(processStart, s.Proc, start, first-start, otlp.NewSpanID(), a.root)
		if a.add(p) {
			a.procs[s.PID] = len(a.phases) - 1
		}
		return
	}
	if d := max(first-start, 0).Seconds(); d < a.phases[i].Duration {
		a.phases[i].Duration = d
		a.changed()
	}
}

// processStart is the phase from a process' birth to its first span: Python starts
// and imports.
const processStart = "process start"

// birthTick is how coarse a birth is known.
const birthTick = 20 * time.Millisecond

// snapshot is a copy in the order of time, parents before their children.
func (a *Active) snapshot() placement.Trace {
	t := a.head
	t.Phases = slices.Clone(a.phases)
	if t.Phases == nil {
		t.Phases = []placement.Phase{}
	}
	slices.SortStableFunc(t.Phases, func(x, y placement.Phase) int {
		return cmp.Or(cmp.Compare(x.Start, y.Start), cmp.Compare(y.Duration, x.Duration))
	})
	return t
}

func phaseAt(name, proc string, start, d time.Duration, id, parent otlp.SpanID) placement.Phase {
	d = max(d, 0)
	p := placement.Phase{
		Name: otlp.Printable(name), Proc: otlp.Printable(proc), Start: start.Seconds(), Duration: d.Seconds(),
		Before: start < 0 && start+d <= 0, SpanID: id.String(),
	}
	if parent != (otlp.SpanID{}) {
		p.Parent = parent.String()
	}
	return p
}
