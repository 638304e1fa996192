package worker

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDeadIsReachedFromEveryStateAndLeftFromNone(t *testing.T) {
	for _, s := range States() {
		require.Equal(t, s != Dead, CanMove(s, Dead), s)
		require.False(t, CanMove(Dead, s), s)
	}
}

func TestNoWorkerIsWarmTwice(t *testing.T) {
	for _, s := range States() {
		require.Equal(t, s == Spawning, CanMove(s, Warm), s)
	}
}

func TestIllegalMoveNamesTheEdge(t *testing.T) {
	s, err := Move(Draining, Serving)
	require.Equal(t, Draining, s)
	require.EqualError(t, err, "move worker: illegal transition draining -> serving")
}
