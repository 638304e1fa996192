package trace

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/placement"
)

func phase(proc, name string, start, dur float64) placement.Phase {
	return placement.Phase{Proc: proc, Name: name, Start: start, Duration: dur, Before: start+dur <= 0}
}

func TestStatsAreByTierAndPhaseOverStartsThatSucceeded(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var traces []placement.Trace
	for i := 1; i <= 100; i++ {
		traces = append(traces, placement.Trace{
			Placement: "p", Tier: placement.TierWarm, Runtime: "a", Begin: begin.Add(time.Duration(i) * time.Hour), Total: float64(i),
			Phases: []placement.Phase{phase("engine", "Load model", 0.5, float64(i)/2), phase("zygote", "import", -10, 9)},
		})
	}
	traces = append(traces,
		placement.Trace{Placement: "c", Tier: placement.TierCold, Runtime: "b", Begin: begin, Total: 30},
		placement.Trace{Placement: "failed", Tier: placement.TierWarm, Failed: "x", Phases: []placement.Phase{phase("engine", "Load model", 0, 1000)}},
		placement.Trace{Placement: "going on", Tier: placement.TierWarm})
	assert.Equal(t, []Stat{
		{Tier: "cold", Phase: Total, Count: 1, P50: 30, P95: 30, Max: 30},
		{Tier: "warm", Phase: Total, Count: 100, P50: 50, P95: 95, Max: 100},
		{Tier: "warm", Proc: "engine", Phase: "Load model", Count: 100, P50: 25, P95: 47.5, Max: 50},
		{Tier: "warm", Proc: "zygote", Phase: "import", Before: true, Count: 100, P50: 9, P95: 9, Max: 9},
	}, Summarize(traces, Filter{}))

	assert.Len(t, Summarize(traces, Filter{Tier: placement.TierCold}), 1)
	assert.Len(t, Summarize(traces, Filter{Runtime: "b"}), 1)
	assert.Empty(t, Summarize(traces, Filter{Model: "nobody's"}))
	assert.Equal(t, 10, Summarize(traces, Filter{Since: begin.Add(91 * time.Hour)})[0].Count)
	assert.Empty(t, Summarize(nil, Filter{}))
}

func TestPhaseThatRanInManyWorkersCountsAsLongAsItTook(t *testing.T) {
	for name, c := range map[string]struct {
		phases []placement.Phase
		want   float64
	}{
		"at once":                  {[]placement.Phase{phase("worker", "w", 1, 2), phase("worker", "w", 1.5, 2), phase("worker", "w", 1, 1)}, 2.5},
		"in a row":                 {[]placement.Phase{phase("worker", "w", 1, 2), phase("worker", "w", 5, 2)}, 4},
		"begun before the request": {[]placement.Phase{phase("worker", "w", -5, 6)}, 1},
	} {
		got := Summarize([]placement.Trace{{Placement: "p", Tier: "warm", Total: 9, Phases: c.phases}}, Filter{})
		require.Len(t, got, 2, name)
		assert.InDelta(t, c.want, got[1].P50, 1e-9, name)
	}
}
