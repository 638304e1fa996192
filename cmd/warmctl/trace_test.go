package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

// TestTraceOfAFreshStartWaitsForItsLastSpans: what people type right after a place.
func TestTraceOfAFreshStartWaitsForItsLastSpans(t *testing.T) {
	fresh := fakeTrace("p-aaa1")
	took := time.Duration(fresh.Total * float64(time.Second))
	fresh.Begin = now.Add(-took).Add(time.Millisecond - spansDue) // the last spans are due in a millisecond
	early := fresh
	early.Phases = fresh.Phases[:5]
	going := early
	going.Total = 0
	old := early
	old.Begin = now.Add(-took).Add(-spansDue)
	ahead := early
	ahead.Begin = now.Add(time.Second) // by its node's clock
	for what, c := range map[string]struct {
		answers []placement.Trace
		shown   bool
	}{
		"a fresh one is asked for again":       {[]placement.Trace{early, fresh}, true},
		"one that goes on is shown as it is":   {[]placement.Trace{going, fresh}, false},
		"an old one will not change":           {[]placement.Trace{old, fresh}, false},
		"a node's clock that is ahead is left": {[]placement.Trace{ahead, fresh}, false},
	} {
		f := newFake(t)
		f.set(func() { f.traces = c.answers })
		got := warmctl(t, f.console(), "trace", "p-aaa1")
		require.Equal(t, exitOK, got.code, what)
		if c.shown {
			require.Contains(t, got.out, "Load weights", what)
		} else {
			require.NotContains(t, got.out, "Load weights", what)
		}
	}
}
