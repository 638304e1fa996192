package trace

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"strings"
	"time"
	"unicode"

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
	trace traceID
	root  spanID // parent of our phases, and of the engine's
	name  string // of the file

	phases []placement.Phase
	ids    map[string]bool
	ended  time.Time // when Ready or Fail was called, by our clock
	dirty  bool      // the file, if any, is behind
}

type (
	traceID [16]byte
	spanID  [8]byte
)

// Begin starts the trace of a placement. head says what is known (placement, node,
// device, runtime, model, tier); at is when the request came, and zero in all
// phases' times. A valid traceparent makes it a part of the caller's trace.
func (r *Recorder) Begin(head placement.Trace, traceparent string, at time.Time) *Active {
	a := &Active{rec: r, head: head, begin: at, ids: map[string]bool{}}
	rand.Read(a.root[:])
	if id, ok := parseTraceparent(traceparent); ok {
		a.trace = id
	} else {
		rand.Read(a.trace[:])
	}
	a.head.TraceID = hex.EncodeToString(a.trace[:])
	a.head.Begin = at.Round(0).UTC()
	a.head.Total, a.head.Failed, a.head.Phases = 0, "", nil
	// Sorts by time; the span id makes it unique, whatever the placement is called.
	a.name = a.head.Begin.Format("20060102T150405.000000000") + "-" + hex.EncodeToString(a.root[:]) + fileSuffix

	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.open) >= maxOpen {
		r.opt.Log.Warn("trace dropped: too many starts are under way", "placement", r.open[0].head.Placement, "open", len(r.open))
		r.leave(r.open[0])
		r.open = slices.Delete(r.open, 0, 1)
	}
	r.open = append(r.open, a)
	r.join(a)
	return a
}

// TraceID is the trace's OpenTelemetry id, in hex.
func (a *Active) TraceID() string { return a.head.TraceID }

// Traceparent makes what a callee does a part of this trace. It always asks for
// sampling: an engine that thinks itself unsampled would send nothing.
func (a *Active) Traceparent() string {
	return "00-" + a.head.TraceID + "-" + hex.EncodeToString(a.root[:]) + "-01"
}

// Env makes an engine send its spans here. The short delay is so that they come
// while somebody still waits, and before an engine is killed.
func (a *Active) Env() map[string]string {
	return map[string]string{
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": a.rec.Endpoint(),
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
		"OTEL_BSP_SCHEDULE_DELAY":            "500",
		"TRACEPARENT":                        a.Traceparent(),
	}
}

// Phase adds one of our own phases, or one that a worker reported. A phase that
// was over before the start began is marked as such.
func (a *Active) Phase(name, proc string, start time.Time, d time.Duration) {
	var id spanID
	rand.Read(id[:])
	a.rec.mu.Lock()
	defer a.rec.mu.Unlock()
	a.add(phaseAt(name, proc, start.Sub(a.begin), d, id, a.root))
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
	if !a.ended.IsZero() {
		a.dirty = true
	}
	return true
}

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

func phaseAt(name, proc string, start, d time.Duration, id, parent spanID) placement.Phase {
	d = max(d, 0)
	p := placement.Phase{
		Name: text(name), Proc: text(proc), Start: start.Seconds(), Duration: d.Seconds(),
		Before: start < 0 && start+d <= 0, SpanID: hex.EncodeToString(id[:]),
	}
	if parent != (spanID{}) {
		p.Parent = hex.EncodeToString(parent[:])
	}
	return p
}

// text makes a name fit for a terminal and a metric label: engines are not
// trusted to be short and printable.
func text(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}

// parseTraceparent takes the trace id out of a W3C traceparent header.
func parseTraceparent(s string) (traceID, bool) {
	var id traceID
	f := strings.Split(s, "-")
	if len(f) < 4 || len(f[0]) != 2 || f[0] == "ff" || (f[0] == "00" && len(f) != 4) || len(f[1]) != 32 || len(f[2]) != 16 || len(f[3]) != 2 ||
		strings.ToLower(s) != s {
		return id, false
	}
	var parent spanID
	for _, part := range []struct {
		dst []byte
		src string
	}{{make([]byte, 1), f[0]}, {id[:], f[1]}, {parent[:], f[2]}, {make([]byte, 1), f[3]}} {
		if _, err := hex.Decode(part.dst, []byte(part.src)); err != nil {
			return traceID{}, false
		}
	}
	return id, id != traceID{} && parent != spanID{}
}
