package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

// TestAnswerAboutASilentNodeIsAnAnswer: the coordinator answers that a node cannot
// be reached; that is no reason to ask an agent, and not the coordinator's absence.
func TestAnswerAboutASilentNodeIsAnAnswer(t *testing.T) {
	f := newFake(t)
	got := warmctl(t, f.console(), "trace", "p-far")
	require.Equal(t, exitUnavailable, got.code)
	require.Contains(t, got.err, "warmctl: reach server: dial tcp 10.0.0.9:7701: connect: no route to host\n")
	require.NotContains(t, got.err, f.coordinator.URL)
	require.NotContains(t, got.err, "agent")
}

// TestPartialAnswersSayWhatIsMissing, on stderr: stdout stays the list.
func TestPartialAnswersSayWhatIsMissing(t *testing.T) {
	f := newFake(t)
	f.set(func() { f.headers = map[string]string{ageHeader: "12.5", missHeader: "n3,n4"} })
	for _, line := range [][]string{{"ps"}, {"ps", "--all"}, {"workers"}, {"trace"}, {"events"}, {"workers", "-o", "json"}} {
		got := warmctl(t, f.console(), line...)
		require.Equal(t, exitOK, got.code)
		require.NotEmpty(t, got.out)
		require.Equal(t, "etcd does not answer the coordinator: this is what it remembers, 12.5 s old\nwithout the nodes that did not answer: n3, n4\n", got.err, line)
	}
}

// TestReadyPlacementOnASilentNodeShowsWhy in a plain ps.
func TestReadyPlacementOnASilentNodeShowsWhy(t *testing.T) {
	f := newFake(t)
	f.set(func() {
		p := f.placements["p-aaa1"]
		p.Reason = "node n1 is failed, last heard 40 s ago"
		f.placements[p.ID] = p
	})
	require.Contains(t, warmctl(t, f.console(), "ps").out, "node n1 is failed, last heard 40 s ago")
}

// TestKeysMeanWhatTheCoordinatorTakesThemFor: the agent's list is searched by the
// same rule: id, then living ones by prefix or name, then the latest that ended.
func TestKeysMeanWhatTheCoordinatorTakesThemFor(t *testing.T) {
	mk := func(id, name string, s placement.State, ago time.Duration) placement.Placement {
		return placement.Placement{ID: id, Request: placement.Request{Name: name}, State: s, Updated: now.Add(-ago)}
	}
	all := []placement.Placement{
		mk("p-abc1", "demo", placement.Ready, 0), mk("p-abc2", "other", placement.Loading, 0), mk("p-abc", "exact", placement.Ready, 0),
		mk("p-old1", "demo", placement.Released, time.Hour), mk("p-old2", "gone", placement.Failed, 2*time.Hour), mk("p-old3", "gone", placement.Released, time.Hour),
		mk("p-dup1", "twin", placement.Ready, 0), mk("p-dup2", "twin", placement.Ready, 0),
	}
	for key, want := range map[string]string{"p-abc1": "p-abc1", "p-abc": "p-abc", "demo": "p-abc1", "gone": "p-old3", "p-old1": "p-old1", "p-old": "p-old1", "other": "p-abc2"} {
		got, err := findPlacement(all, key)
		require.NoError(t, err, key)
		require.Equal(t, want, got.ID, key)
	}
	for key, exit := range map[string]int{"twin": exitUsage, "p-d": exitUsage, "p-": exitNotFound, "": exitNotFound, "none": exitNotFound} {
		_, err := findPlacement(all, key)
		require.Equal(t, exit, exitCode(err), key)
	}
}
