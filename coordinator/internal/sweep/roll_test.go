package sweep

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"warmd/coordinator/internal/store/storetest"
)

// register puts what a coordinator would that nobody renews the lease of.
func register(t *testing.T, cl *clientv3.Client, instance, standing string) clientv3.LeaseID {
	t.Helper()
	lease, err := cl.Grant(t.Context(), 300)
	require.NoError(t, err)
	_, err = cl.Put(t.Context(), "/w/coordinators/"+instance, standing, clientv3.WithLease(lease.ID))
	require.NoError(t, err)
	return lease.ID
}

// standings is nil while etcd does not answer.
func standings(t *testing.T, cl *clientv3.Client) map[string]string {
	t.Helper()
	got, err := cl.Get(t.Context(), "/w/coordinators/", clientv3.WithPrefix())
	if err != nil {
		return nil
	}
	all := map[string]string{}
	for _, kv := range got.Kvs {
		all[string(kv.Key)[len("/w/coordinators/"):]] = string(kv.Value)
	}
	return all
}

func TestARollCallTakesTheLeaseOfWhoDidNotAnswerAndOfNobodyElse(t *testing.T) {
	cl := storetest.StartEtcd(t).Client()
	e := newElection(cl, "a", 5)
	own := register(t, cl, "a.1", "a 6") // somebody who reads its own old value keeps it
	register(t, cl, "answered.1", "answered 7")
	register(t, cl, "knows-more.1", "knows-more 8")
	register(t, cl, "older-version.1", "older-version")
	register(t, cl, "silent.1", "silent 6")
	before := standings(t, cl)

	got, err := cl.Get(t.Context(), "x")
	require.NoError(t, err)
	require.NoError(t, e.callRoll(t.Context(), own, got.Header.RaftTerm+1))
	assert.Equal(t, before, standings(t, cl), "no call in a term that is not etcd's")

	term := got.Header.RaftTerm
	for instance, standing := range map[string]string{"answered.1": e.standing(term), "knows-more.1": e.standing(term + 1), "silent.1": e.standing(term - 1), "a.1": e.standing(term - 1)} {
		_, err := cl.Put(t.Context(), "/w/coordinators/"+instance, standing, clientv3.WithIgnoreLease())
		require.NoError(t, err)
	}
	require.NoError(t, e.callRoll(t.Context(), own, term))
	left := standings(t, cl)
	assert.NotContains(t, left, "silent.1")
	assert.Len(t, left, len(before)-1)
	require.NoError(t, e.callRoll(t.Context(), own, term), "again, when another one was faster")
}

// etcd restarts, and so has a new term and grants every lease its time anew. The living
// answer and keep their leases; the dead one's, which would live for minutes, is revoked.
func TestWhenEtcdHasANewLeaderTheLivingKeepTheirLeasesAndTheDeadDoNot(t *testing.T) {
	etcd := storetest.StartEtcd(t)
	cl := etcd.Client()
	a := stand(t, newElection(cl, "a", 12))
	<-a.led
	b := stand(t, newElection(cl, "b", 12))
	require.Eventually(t, func() bool { return len(standings(t, cl)) == 2 }, 20*time.Second, 5*time.Millisecond)
	before := standings(t, cl)
	was, ok := termOf(before["a.1"])
	require.True(t, ok)
	register(t, cl, "dead.1", a.standing(was))

	etcd.Stop() // takes 5 s
	etcd.Up()
	require.Eventually(t, func() bool { now := standings(t, cl); return now != nil && now["dead.1"] == "" }, 30*time.Second, 20*time.Millisecond)
	after := standings(t, cl)
	assert.Len(t, after, 2)
	for instance, standing := range after {
		term, ok := termOf(standing)
		assert.True(t, ok && term > was, "%s: %s after %d", instance, standing, was)
	}
	assert.Empty(t, a.lost, "who leads goes on leading")
	assert.Empty(t, b.led)
}
