package trace

import (
	"math"
	"slices"
	"time"

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
	members map[spanID]*Active // by root
	shared  bool
	parents map[spanID]spanID // of every span seen
	waiting []span
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
		f = &family{members: map[spanID]*Active{}, parents: map[spanID]spanID{}}
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
func (r *Recorder) take(spans []span) []joined {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []joined
	touched := map[*family]bool{}
	for _, s := range spans {
		f := r.families[s.trace]
		if f == nil {
			continue
		}
		if len(f.parents) < maxParents {
			f.parents[s.id] = s.parent
		}
		if a := f.owner(s); a != nil {
			out = append(out, r.give(a, s)...)
		} else if len(f.waiting) < maxWaiting {
			f.waiting = append(f.waiting, s)
		} else {
			r.lost++
		}
		touched[f] = true
	}
	for f := range touched {
		f.waiting = slices.DeleteFunc(f.waiting, func(s span) bool {
			a := f.owner(s)
			if a != nil {
				out = append(out, r.give(a, s)...)
			}
			return a != nil
		})
	}
	return out
}

func (r *Recorder) give(a *Active, s span) []joined {
	start, d, ok := s.times(a.begin)
	if !ok || len(a.phases) >= maxPhases {
		r.lost++
		return nil
	}
	p := phaseAt(s.name, s.proc, start, d, s.id, s.parent)
	if !a.add(p) {
		return nil
	}
	if !a.ended.IsZero() {
		r.wake()
	}
	return []joined{{a.head.Placement, p}}
}

// owner walks up from a span to a root, and is nil when it does not get there. A
// start that never had to share owns every span: an engine may lose some of the
// ancestors.
func (f *family) owner(s span) *Active {
	if !f.shared {
		for _, a := range f.members {
			return a
		}
	}
	at := s.parent
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
func (s span) times(begin time.Time) (start, d time.Duration, ok bool) {
	if s.start > math.MaxInt64 || s.end > math.MaxInt64 || s.start == 0 {
		return 0, 0, false
	}
	start = time.Unix(0, int64(s.start)).Sub(begin.Round(0))
	return start, time.Duration(max(int64(s.end)-int64(s.start), 0)), true
}
