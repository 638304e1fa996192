package trace

import (
	"cmp"
	"math"
	"slices"
	"time"

	"warmd/placement"
)

// Filter chooses starts; an empty field chooses all.
type Filter struct {
	Tier    placement.Tier
	Runtime string
	Model   string
	Device  string
	Since   time.Time
}

func (f Filter) match(t placement.Trace) bool {
	return (f.Tier == "" || f.Tier == t.Tier) && (f.Runtime == "" || f.Runtime == t.Runtime) && (f.Model == "" || f.Model == t.Model) &&
		(f.Device == "" || f.Device == t.Device) && !t.Begin.Before(f.Since)
}

// Total is the phase name of a whole start in Stats: request to first token.
const Total = "total"

// Stat is how long a phase took, over the starts of one tier that had it.
type Stat struct {
	Tier  placement.Tier `json:"tier"`
	Proc  string         `json:"proc,omitempty"`
	Phase string         `json:"phase"`
	// Before is set for work that was over before the request: it is what warmth
	// saved, not a part of the start.
	Before bool    `json:"before_request,omitempty"`
	Count  int     `json:"count"`
	P50    float64 `json:"p50_seconds"`
	P95    float64 `json:"p95_seconds"`
	Max    float64 `json:"max_seconds"`
}

// Stats sums up the starts that came to a first token: by tier the total first,
// then each phase, the longest first.
func (r *Recorder) Stats(f Filter) []Stat { return Summarize(r.List(), f) }

// Summarize is Stats over any traces, of one node or of many.
func Summarize(traces []placement.Trace, f Filter) []Stat {
	type key struct {
		tier        placement.Tier
		proc, phase string
		before      bool
	}
	type piece struct {
		proc, phase string
		before      bool
	}
	samples := map[key][]float64{}
	for _, t := range traces {
		if t.Total <= 0 || t.Failed != "" || !f.match(t) {
			continue
		}
		samples[key{t.Tier, "", Total, false}] = append(samples[key{t.Tier, "", Total, false}], t.Total)
		parts := map[piece][]placement.Phase{}
		for _, p := range t.Phases {
			k := piece{p.Proc, p.Name, p.Before}
			parts[k] = append(parts[k], p)
		}
		for k, ps := range parts {
			s := key{t.Tier, k.proc, k.phase, k.before}
			samples[s] = append(samples[s], covered(ps, k.before))
		}
	}
	out := make([]Stat, 0, len(samples))
	for k, v := range samples {
		slices.Sort(v)
		out = append(out, Stat{k.tier, k.proc, k.phase, k.before, len(v), rank(v, 0.50), rank(v, 0.95), v[len(v)-1]})
	}
	slices.SortFunc(out, func(a, b Stat) int {
		return cmp.Or(cmp.Compare(a.Tier, b.Tier), yes(a.Proc != "")-yes(b.Proc != ""), yes(a.Before)-yes(b.Before),
			cmp.Compare(b.P50, a.P50), cmp.Compare(a.Phase, b.Phase), cmp.Compare(a.Proc, b.Proc))
	})
	return out
}

func yes(b bool) int {
	if b {
		return 1
	}
	return 0
}

// covered is the time that any of the phases ran: eight workers that load at once
// take as long as one, and two loads in a row as long as both. What was done before
// the request does not count for a phase that went on after it.
func covered(ps []placement.Phase, before bool) float64 {
	slices.SortFunc(ps, func(a, b placement.Phase) int { return cmp.Compare(a.Start, b.Start) })
	sum, end := 0.0, math.Inf(-1)
	if !before {
		end = 0
	}
	for _, p := range ps {
		from, to := max(p.Start, end), p.Start+p.Duration
		if to > from {
			sum += to - from
		}
		end = max(end, to)
	}
	return sum
}

// rank is the smallest sample that at least the share q of all samples reach.
func rank(sorted []float64, q float64) float64 {
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}
