package store_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"warmd/coordinator/internal/store"
	"warmd/coordinator/internal/store/storetest"
	"warmd/placement"
)

// A watch that asks for a compacted revision ends with ErrCompacted, which Follow
// answers with the whole state; it does not go on with a hole.
func TestWatchOfACompactedRevisionStartsOver(t *testing.T) {
	cl := storetest.StartEtcd(t).Client()
	s := store.NewEtcd(cl, "/w/")
	first, err := s.Create(t.Context(), store.Record{Placement: placement.Placement{ID: "p-1", State: placement.Assigned}}, store.NoFence)
	require.NoError(t, err)
	second, err := s.Create(t.Context(), store.Record{Placement: placement.Placement{ID: "p-2", State: placement.Assigned}}, store.NoFence)
	require.NoError(t, err)
	_, err = cl.Compact(t.Context(), second.Revision)
	require.NoError(t, err)

	var told atomic.Int64
	err = s.WatchFrom(t.Context(), first.Revision, func(store.Change) { told.Add(1) })
	require.ErrorIs(t, err, rpctypes.ErrCompacted)
	assert.Zero(t, told.Load())

	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, s.Follow(ctx, func(c store.Change) {
		assert.True(t, c.Reset)
		assert.Len(t, c.All, 2)
		cancel()
	}))
}
