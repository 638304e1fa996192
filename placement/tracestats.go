package placement

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
)

// TraceFilter chooses starts; an empty field chooses all. Model is a path, or the
// last part of one.
type TraceFilter struct {
	Model, Node, Device, Runtime string
	Tier                         Tier
	Since                        time.Time
}

func (f TraceFilter) match(t Trace) bool {
	return (f.Model == "" || f.Model == t.Model || strings.HasSuffix(t.Model, "/"+f.Model)) && (f.Node == "" || f.Node == t.Node) && (f.Device == "" || f.Device == t.Device) &&
		(f.Runtime == "" || f.Runtime == t.Runtime) && (f.Tier == "" || f.Tier == t.Tier) && !t.Begin.Before(f.Since)
}

// PhaseTotal is the phase name of a whole start: request to first token.
const PhaseTotal = "total"

// PhaseStat is how long a phase took, over the starts of one model on one node in
// one tier that had it.
type PhaseStat struct {
	Model string `json:"model"`
	Node  string `json:"node"`
	Tier  Tier   `json:"tier"`
	Proc  string `json:"proc,omitempty"`
	Phase string `json:"phase"`
	// Before is set for work that was over before the request: it is what warmth
	// saved, not a part of the start.
	Before bool    `json:"before_request,omitempty"`
	Count  int     `json:"count"`
	P50    float64 `json:"p50_seconds"`
	P95    float64 `json:"p95_seconds"`
	P99    float64 `json:"p99_seconds"`
	Max    float64 `json:"max_seconds"`
}

// phaseKey is what makes two phases of different starts the same.
type phaseKey struct {
	proc, phase string
	before      bool
}

// phasesOf is how long each phase of a start took, the total among them.
func phasesOf(t Trace) map[phaseKey]float64 {
	parts := map[phaseKey][]Phase{}
	for _, p := range t.Phases {
		k := phaseKey{p.Proc, p.Name, p.Before}
		parts[k] = append(parts[k], p)
	}
	out := map[phaseKey]float64{}
	for k, ps := range parts {
		out[k] = Covered(ps)
	}
	if t.Total > 0 {
		out[phaseKey{phase: PhaseTotal}] = t.Total
	}
	return out
}

// Summarize sums up the starts that came to a first token: by model, node and tier
// the total first, then each phase, the longest first.
func Summarize(traces []Trace, f TraceFilter) []PhaseStat {
	type key struct {
		model, node string
		tier        Tier
		phaseKey
	}
	samples := map[key][]float64{}
	for _, t := range traces {
		if t.Total <= 0 || t.Failed != "" || !f.match(t) {
			continue
		}
		for p, seconds := range phasesOf(t) {
			k := key{t.Model, t.Node, t.Tier, p}
			samples[k] = append(samples[k], seconds)
		}
	}
	out := make([]PhaseStat, 0, len(samples))
	for k, v := range samples {
		slices.Sort(v)
		out = append(out, PhaseStat{
			Model: k.model, Node: k.node, Tier: k.tier, Proc: k.proc, Phase: k.phase, Before: k.before,
			Count: len(v), P50: Quantile(v, 0.50), P95: Quantile(v, 0.95), P99: Quantile(v, 0.99), Max: v[len(v)-1],
		})
	}
	slices.SortFunc(out, func(a, b PhaseStat) int {
		return cmp.Or(cmp.Compare(a.Model, b.Model), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Tier, b.Tier),
			yes(a.Proc != "")-yes(b.Proc != ""), yes(a.Before)-yes(b.Before),
			cmp.Compare(b.P50, a.P50), cmp.Compare(a.Phase, b.Phase), cmp.Compare(a.Proc, b.Proc))
	})
	return out
}

// PhaseDiff is one phase of two starts. In is false where a start has none.
type PhaseDiff struct {
	Proc   string  `json:"proc,omitempty"`
	Phase  string  `json:"phase"`
	Before bool    `json:"before_request,omitempty"`
	A      float64 `json:"a_seconds"`
	B      float64 `json:"b_seconds"`
	InA    bool    `json:"in_a"`
	InB    bool    `json:"in_b"`
	// Delta is B - A: positive when B was slower.
	Delta float64 `json:"delta_seconds"`
}

// DiffTraces compares two starts phase by phase: the total first, then what got
// slower by most, to what got faster by most. Phases nest, so their deltas do not
// add up to that of the total.
func DiffTraces(a, b Trace) []PhaseDiff {
	was, is := phasesOf(a), phasesOf(b)
	out := []PhaseDiff{}
	for k := range was {
		if _, both := is[k]; !both {
			out = append(out, PhaseDiff{Proc: k.proc, Phase: k.phase, Before: k.before, A: was[k], InA: true, Delta: -was[k]})
		}
	}
	for k := range is {
		_, both := was[k]
		out = append(out, PhaseDiff{Proc: k.proc, Phase: k.phase, Before: k.before, A: was[k], B: is[k], InA: both, InB: true, Delta: is[k] - was[k]})
	}
	slices.SortFunc(out, func(x, y PhaseDiff) int {
		return cmp.Or(yes(x.Proc != "")-yes(y.Proc != ""), yes(x.Before)-yes(y.Before),
			cmp.Compare(y.Delta, x.Delta), cmp.Compare(x.Phase, y.Phase), cmp.Compare(x.Proc, y.Proc))
	})
	return out
}

func yes(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Covered is the time in which at least one of the phases ran: eight workers that
// load at once take as long as one, and two loads in a row as long as both. What a
// phase that was waited for did before the request, nobody waited for.
func Covered(phases []Phase) float64 {
	spans := make([][2]float64, 0, len(phases))
	for _, p := range phases {
		from, to := p.Start, p.Start+p.Duration
		if !p.Before && to > 0 {
			from = max(from, 0)
		}
		spans = append(spans, [2]float64{from, to})
	}
	slices.SortFunc(spans, func(a, b [2]float64) int { return cmp.Compare(a[0], b[0]) })
	sum, end := 0.0, math.Inf(-1)
	for _, s := range spans {
		if s[1] > end {
			sum += s[1] - max(s[0], end)
			end = s[1]
		}
	}
	return sum
}

// Quantile is the nearest-rank quantile of sorted values: the smallest that at
// least the share q of them reach.
func Quantile(sorted []float64, q float64) float64 {
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}
