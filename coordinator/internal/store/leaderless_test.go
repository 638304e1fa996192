package store_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"warmd/coordinator/internal/store"
	"warmd/coordinator/internal/store/storetest"
)

// Two etcds stand for two members of one: the client does not care, and one of them has
// lost its leader and still answers, as after a partition.
func TestMemberWithoutALeaderIsPassedOver(t *testing.T) {
	cut, whole := storetest.StartEtcd(t), storetest.StartEtcd(t)
	cut.LoseLeader()
	cl, err := store.Dial(store.DialConfig{Endpoints: []string{cut.Endpoint(), whole.Endpoint()}})
	require.NoError(t, err)
	defer cl.Close()
	for i := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		key, value := "k"+strconv.Itoa(i), strconv.Itoa(i)
		_, err := cl.Txn(ctx).Then(clientv3.OpPut(key, value)).Commit()
		require.NoError(t, err, "write %d", i)
		got, err := cl.Get(ctx, key)
		require.NoError(t, err, "read %d", i)
		require.Len(t, got.Kvs, 1)
		require.Equal(t, value, string(got.Kvs[0].Value))
		cancel()
	}
}

func TestWithoutALeaderAnywhereACallEndsWithItsTimeAndSaysSo(t *testing.T) {
	cut := storetest.StartEtcd(t)
	cut.LoseLeader()
	cl, err := store.Dial(store.DialConfig{Endpoints: []string{cut.Endpoint()}})
	require.NoError(t, err)
	defer cl.Close()
	err = store.NewEtcd(cl, "/warmd/").Ping(t.Context())
	require.ErrorContains(t, err, "): no member has a leader")
}
