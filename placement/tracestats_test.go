package placement

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func phase(proc, name string, start, dur float64) Phase {
	return Phase{Proc: proc, Name: name, Start: start, Duration: dur, Before: start+dur <= 0}
}

func TestStatsAreByModelNodeTierAndPhaseOverStartsThatSucceeded(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var traces []Trace
	for i := 1; i <= 100; i++ {
		traces = append(traces, Trace{
			Model: "m", Node: "n1", Tier: TierWarm, Runtime: "a", Begin: begin.Add(time.Duration(i) * time.Hour), Total: float64(i),
			Phases: []Phase{phase("engine", "Load model", 0.5, float64(i)/2), phase("zygote", "import", -10, 9)},
		})
	}
	traces = append(traces,
		Trace{Model: "m", Node: "n1", Tier: TierCold, Runtime: "b", Begin: begin, Total: 30},
		Trace{Model: "m", Node: "n0", Tier: TierWarm, Begin: begin, Total: 7},
		Trace{Model: "m", Node: "n1", Tier: TierWarm, Failed: "x", Phases: []Phase{phase("engine", "Load model", 0, 1000)}},
		Trace{Model: "m", Node: "n1", Tier: TierWarm})
	assert.Equal(t, []PhaseStat{
		{Model: "m", Node: "n0", Tier: "warm", Phase: PhaseTotal, Count: 1, P50: 7, P95: 7, P99: 7, Max: 7},
		{Model: "m", Node: "n1", Tier: "cold", Phase: PhaseTotal, Count: 1, P50: 30, P95: 30, P99: 30, Max: 30},
		{Model: "m", Node: "n1", Tier: "warm", Phase: PhaseTotal, Count: 100, P50: 50, P95: 95, P99: 99, Max: 100},
		{Model: "m", Node: "n1", Tier: "warm", Proc: "engine", Phase: "Load model", Count: 100, P50: 25, P95: 47.5, P99: 49.5, Max: 50},
		{Model: "m", Node: "n1", Tier: "warm", Proc: "zygote", Phase: "import", Before: true, Count: 100, P50: 9, P95: 9, P99: 9, Max: 9},
	}, Summarize(traces, TraceFilter{}))

	assert.Len(t, Summarize(traces, TraceFilter{Tier: TierCold}), 1)
	assert.Len(t, Summarize(traces, TraceFilter{Runtime: "b"}), 1)
	assert.Len(t, Summarize(traces, TraceFilter{Node: "n0"}), 1)
	assert.Empty(t, Summarize(traces, TraceFilter{Model: "nobody's"}))
	assert.Equal(t, 10, Summarize(traces, TraceFilter{Since: begin.Add(91 * time.Hour)})[0].Count)
	assert.Empty(t, Summarize(nil, TraceFilter{}))
}

func TestPhaseThatRanInManyWorkersCountsAsLongAsItTook(t *testing.T) {
	for name, c := range map[string]struct {
		phases []Phase
		want   float64
	}{
		"at once":                  {[]Phase{phase("worker", "w", 1, 2), phase("worker", "w", 1.5, 2), phase("worker", "w", 1, 1)}, 2.5},
		"in a row":                 {[]Phase{phase("worker", "w", 1, 2), phase("worker", "w", 5, 2)}, 4},
		"begun before the request": {[]Phase{phase("worker", "w", -5, 6)}, 1},
	} {
		got := Summarize([]Trace{{Tier: "warm", Total: 9, Phases: c.phases}}, TraceFilter{})
		require.Len(t, got, 2, name)
		assert.InDelta(t, c.want, got[1].P50, 1e-9, name)
	}
}

// TestCoveredTimeCountsNestedPhasesOnce against a dumb count of milliseconds.
func TestCoveredTimeCountsNestedPhasesOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var phases []Phase
		busy := map[int]bool{}
		for range rapid.IntRange(0, 8).Draw(t, "n") {
			from, d := rapid.IntRange(0, 50).Draw(t, "from"), rapid.IntRange(0, 30).Draw(t, "d")
			phases = append(phases, Phase{Start: float64(from), Duration: float64(d)})
			for i := from; i < from+d; i++ {
				busy[i] = true
			}
		}
		if got := Covered(phases); got != float64(len(busy)) {
			t.Fatalf("covered %v, counted %d", got, len(busy))
		}
	})
}

func TestDiffNamesWhatGotSlowerFirst(t *testing.T) {
	a := Trace{Total: 3, Phases: []Phase{phase("engine", "config", 0, 1), phase("worker", "Load model", 1, 1), phase("api", "parse", 0, 0.5), phase("engine", "import", -9, 5)}}
	b := Trace{Total: 5, Phases: []Phase{phase("engine", "config", 0, 0.5), phase("worker", "Load model", 1, 3), phase("zygote", "fork", 0, 0.25), phase("engine", "import", -9, 6)}}
	assert.Equal(t, []PhaseDiff{
		{Phase: PhaseTotal, A: 3, B: 5, InA: true, InB: true, Delta: 2},
		{Proc: "worker", Phase: "Load model", A: 1, B: 3, InA: true, InB: true, Delta: 2},
		{Proc: "zygote", Phase: "fork", B: 0.25, InB: true, Delta: 0.25},
		{Proc: "engine", Phase: "config", A: 1, B: 0.5, InA: true, InB: true, Delta: -0.5},
		{Proc: "api", Phase: "parse", A: 0.5, InA: true, Delta: -0.5},
		{Proc: "engine", Phase: "import", Before: true, A: 5, B: 6, InA: true, InB: true, Delta: 1},
	}, DiffTraces(a, b))
	assert.Empty(t, DiffTraces(Trace{}, Trace{}), "two starts that go on have no total yet")
	for _, d := range DiffTraces(b, b) {
		assert.Zero(t, d.Delta, d.Phase)
	}
}

func TestQuantileIsTheNearestRank(t *testing.T) {
	v := []float64{1, 2, 3, 4, 5}
	for q, want := range map[float64]float64{0: 1, .5: 3, .95: 5, 1: 5} {
		assert.InDelta(t, want, Quantile(v, q), 0)
	}
	assert.InDelta(t, 7, Quantile([]float64{7}, .5), 0)
}
