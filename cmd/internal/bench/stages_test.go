package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"warmd/placement"
)

func recorded(t *testing.T, name string) placement.Trace {
	t.Helper()
	raw, err := os.ReadFile("testdata/" + name + ".trace.json")
	require.NoError(t, err)
	var tr placement.Trace
	require.NoError(t, json.Unmarshal(raw, &tr))
	return tr
}

// seen is a start whose request was sent a moment before the agent got it.
func seen(tr placement.Trace, before, answers, token float64) Moments {
	at := func(s float64) time.Time { return tr.Begin.Add(time.Duration(s * float64(time.Second))) }
	return Moments{Sent: at(-before), Answers: at(answers), Token: at(token), Trace: tr}
}

func pieces(s Stages) string {
	var b strings.Builder
	for _, p := range s.Pieces {
		fmt.Fprintf(&b, "%7.3f %7.3f %s: %s to %s\n", p.Start, p.Seconds, p.Stage, p.From, p.To)
	}
	return b.String()
}

func TestStagesOfAParkedStart(t *testing.T) {
	s := StagesOf(seen(recorded(t, "warm"), 0.004, 9.53, 9.85))
	assert.Empty(t, s.Missing)
	assert.Equal(t, `  0.000   0.004 api_server_overhead: request sent to attach begins
  0.004   0.156 worker_startup_attach: attach begins to engine process begins
  0.160   0.979 executor_init_config: engine process begins to executor init
  1.139   2.026 worker_startup_attach: executor init to model load begins
  3.165   1.567 model_loading: model load begins to model load ends
  4.732   2.856 executor_init_config: model load ends to engine is up
  7.588   1.946 api_server_overhead: engine is up to server answers
  9.534   0.320 inference: server answers to first token
`, pieces(s))
	assert.InDelta(t, 0, s.Unaccounted, 1e-6)
	assert.InDelta(t, 9.854, s.Seconds[APIServer]+s.Engine()+s.Seconds[Inference], 1e-6)
}

func TestStagesOfAColdStart(t *testing.T) {
	s := StagesOf(seen(recorded(t, "cold"), 0.004, 141.7, 142))
	assert.Empty(t, s.Missing)
	assert.InDelta(t, 78.5+0.004+141.7-138.2277, s.Seconds[APIServer], 1e-3)
	assert.InDelta(t, 91.978-78.5+138.2277-134.3397, s.Seconds[Executor], 1e-3)
	assert.InDelta(t, 130.5974-91.978, s.Seconds[Startup], 1e-3, "the CPU's worker is a process of its own")
	assert.InDelta(t, 3.7423, s.Seconds[Loading], 1e-3)
}

func TestWhatNobodyReportedIsUnaccountedAndNamed(t *testing.T) {
	tr := recorded(t, "warm")
	tr.Phases = deletePhase(tr.Phases, "Load model")
	s := StagesOf(seen(tr, 0.004, 9.53, 9.85))
	assert.Equal(t, []string{"model load begins", "model load ends"}, s.Missing)
	assert.InDelta(t, 2.026+1.567+2.856, s.Unaccounted, 1e-2, "from executor init to the engine being up")
	assert.Zero(t, s.Seconds[Loading])

	s = StagesOf(seen(placement.Trace{Begin: tr.Begin}, 0, 9, 10))
	assert.InDelta(t, 9, s.Unaccounted, 1e-6, "only the client's own marks are left")
	assert.InDelta(t, 1, s.Seconds[Inference], 1e-6)

	s = StagesOf(seen(recorded(t, "warm"), 0.004, 5, 9.85)) // a clock that jumped
	assert.Equal(t, []string{"server answers before engine is up"}, s.Missing)
	assert.Negative(t, s.Unaccounted)
}

func deletePhase(ps []placement.Phase, name string) (out []placement.Phase) {
	for _, p := range ps {
		if p.Name != name {
			out = append(out, p)
		}
	}
	return out
}

// TestStagesAlwaysAddUp to the total, together with what is unaccounted.
func TestStagesAlwaysAddUp(t *testing.T) {
	base := recorded(t, "warm")
	rapid.Check(t, func(t *rapid.T) {
		tr := base
		tr.Phases = nil
		for _, p := range base.Phases {
			if rapid.Bool().Draw(t, p.Name) {
				p.Start += rapid.Float64Range(-3, 3).Draw(t, "shift")
				tr.Phases = append(tr.Phases, p)
			}
		}
		m := seen(tr, rapid.Float64Range(0, 1).Draw(t, "before"), rapid.Float64Range(0, 12).Draw(t, "answers"), 12)
		s := StagesOf(m)
		sum := s.Unaccounted
		for _, st := range []Stage{APIServer, Executor, Startup, Loading, Inference} {
			if s.Seconds[st] < 0 {
				t.Fatalf("%s is %v", st, s.Seconds[st])
			}
			sum += s.Seconds[st]
		}
		if d := sum - m.Token.Sub(m.Sent).Seconds(); d > 1e-6 || d < -1e-6 {
			t.Fatalf("off by %v", d)
		}
	})
}

func TestPublishedTableAddsUp(t *testing.T) {
	for i := range 2 {
		p := func(row string) float64 { return published[row][i] }
		assert.InDelta(t, p(rowTotal), p(rowAPI)+p(rowEngine)+p(rowInference), 0.011)
		assert.InDelta(t, p(rowEngine), p(rowExecutor)+p(rowStartup)+p(rowLoading), 0.011)
	}
	for _, r := range rows {
		if _, ok := published[r.name]; !ok {
			assert.Equal(t, rowUnaccounted, r.name)
		}
	}
}
