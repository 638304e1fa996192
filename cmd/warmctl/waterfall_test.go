package main

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"warmd/placement"
)

func TestWaterfallFitsTheTerminal(t *testing.T) {
	for _, width := range []int{40, 60, 80, 120, 300} {
		golden(t, fmt.Sprintf("trace_%d.golden", width), waterfall(fakeTrace("p-aaa1"), width, false))
	}
}

func TestWaterfallOfAStartThatFailedOrGoesOn(t *testing.T) {
	failed := fakeTrace("p-1")
	failed.Total, failed.Failed, failed.Tier = 0, "engine exited with code 1", placement.TierCold
	failed.Phases = failed.Phases[4:7]
	golden(t, "trace_failed.golden", waterfall(failed, 80, true))
	going := placement.Trace{Placement: "p-2", Model: "m", Node: "n1", Device: "cpu-0", Runtime: "vllm", Tier: placement.TierWarm}
	golden(t, "trace_empty.golden", waterfall(going, 80, true))
}

// TestWaterfallHoldsForAnyPhases: no row is wider than the terminal, every phase
// has its row, ASCII stays ASCII, and a cycle of parents ends.
func TestWaterfallHoldsForAnyPhases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 12).Draw(t, "n")
		tr := placement.Trace{Placement: "p", Model: "m", Node: "n", Device: "d", Total: rapid.Float64Range(0, 100).Draw(t, "total")}
		for i := range n {
			tr.Phases = append(tr.Phases, placement.Phase{
				Name: fmt.Sprintf("step%d%s", i, strings.Repeat("x", rapid.IntRange(0, 40).Draw(t, "name"))), Proc: rapid.SampledFrom([]string{"agent", "engine", "coordinator"}).Draw(t, "proc"),
				Start: rapid.Float64Range(-1000, 100).Draw(t, "start"), Duration: rapid.Float64Range(0, 100).Draw(t, "dur"), Before: rapid.Bool().Draw(t, "before"),
				SpanID: fmt.Sprint(i), Parent: fmt.Sprint(rapid.IntRange(0, n).Draw(t, "parent")),
			})
		}
		width := rapid.IntRange(60, 200).Draw(t, "width")
		out := waterfall(tr, width, true)
		for line := range strings.SplitSeq(out, "\n") {
			if w := utf8.RuneCountInString(line); w > width && !strings.HasPrefix(line, "placement ") {
				t.Fatalf("%d columns in a terminal of %d: %q", w, width, line)
			}
			if len(line) != utf8.RuneCountInString(line) {
				t.Fatalf("not ASCII: %q", line)
			}
		}
		if rows := strings.Count(out, "step"); rows != n {
			t.Fatalf("%d rows for %d phases:\n%s", rows, n, out)
		}
	})
}

func TestCoordinatorsPhasesAreWaitedFor(t *testing.T) {
	before, after := splitPhases(fakeTrace("p").Phases)
	require.Len(t, before, 3)
	require.Equal(t, "choose", after[0].Name)
}
