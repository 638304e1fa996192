package trace

import (
	"math"
	"slices"
	"time"

	"warmd/agent/api/otlp"
	"warmd/placement"
)

// family is the unfinished starts that share one trace id. There is one, as a
// rule; there are more when a caller places several models in one trace of its
// own, or when an attempt follows another. Then a span belongs to the start whose
// root span is among its ancestors. Children are exported before their parents, so
// a span may have to wait until its ancestors are known.
//
// Invariants: no member owns a span in waiting; shared iff there ever were two.
type family struct {
	members map[otlp.SpanID]*Active // by root
	shared  bool
	parents map[otlp.SpanID]otlp.SpanID // of every span seen
	waiting []otlp.Span
}

// The bounds of a family; a span beyond them is lost, and counted.
const (
	maxParents = 4 * maxPhases
	maxWaiting = maxPhases
	maxDepth   = 64
)

// join makes a start a member of the family of its trace.
func (r *Recorder) join(a *Active) {
	f := r.families[a.trace]
	if f == nil {
		f = &family{members: map[otlp.SpanID]*Active{}, parents: map[otlp.SpanID]otlp.SpanID{}}
		r.families[a.trace] = f
	}
	f.members[a.root] = a
	f.shared = f.shared || len(f.members) > 1
}

// leave takes a finished start out of its family.
func (r *Recorder) leave(a *Active) {
	f := r.families[a.trace]
	delete(f.members, a.root)
	if len(f.members) == 0 {
		r.lost += len(f.waiting)
		delete(r.families, a.trace)
	}
}

// joined is a phase that found its start.
type joined struct {
	placement string
	phase     placement.Phase
}

// take gives received spans to the starts that they belong to. Spans of traces
// that nobody here began are dropped without a word: any engine may send them.
func (r *Recorder) take(spans []otlp.Span, births map[int]time.Time) []joined {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []joined
	touched := map[*family]bool{}
	for _, s := range spans {
		f := r.families[s.Trace]
		if f == nil {
			continue
		}
		if len(f.parents) < maxParents {
			f.parents[s.ID] = s.Parent
		}
		if a := f.owner(s); a != nil {
			out = append(out, r.give(a, s, births[s.PID])...)
		} else if len(f.waiting) < maxWaiting {
			f.waiting = append(f.waiting, s)
		} else {
			r.lost++
		}
		touched[f] = true
	}
	for f := range touched {
		f.waiting = slices.DeleteFunc(f.waiting, func(s otlp.Span) bool {
			a := f.owner(s)
			if a != nil {
				out = append(out, r.give(a, s, births[s.PID])...)
			}
			return a != nil
		})
	}
	return out
}

func (r *Recorder) give(a *Active, s otlp.Span, born time.Time) []joined {
	start, d, ok := times(s, a.begin)
	if !ok || len(a.phases) >= maxPhases {
		r.lost++
		return nil
	}
	p := phaseAt(s.Name, s.Proc, start, d, s.ID, s.Parent)
	if !a.add(p) {
		return nil
	}
	a.process(s, born, start)
	return []joined{{a.head.Placement, p}}
}

// owner walks up from a span to a root, and is nil when it does not get there. A
// start that never had to share owns every span: an engine may lose some of the
// ancestors.
func (f *family) owner(s otlp.Span) *Active {
	if !f.shared {
		for _, a := range f.members {
			return a
		}
	}
	at := s.Parent
	for range maxDepth { // parents may form a ring
		if a := f.members[at]; a != nil {
			return a
		}
		up, ok := f.parents[at]
		if !ok {
			break
		}
		at = up
	}
	return nil
}

// times are a span's start, relative to the begin of its trace, and its length.
// The clocks are both this host's wall clock.
func times(s otlp.Span, begin time.Time) (start, d time.Duration, ok bool) {
	if s.Start > math.MaxInt64 || s.End > math.MaxInt64 || s.Start == 0 {
		return 0, 0, false
	}
	start = time.Unix(0, int64(s.Start)).Sub(begin.Round(0))
	return start, time.Duration(max(int64(s.End)-int64(s.Start), 0)), true
}
