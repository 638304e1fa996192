package sweep

import (
	"context"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"warmd/coordinator/internal/store"
	"warmd/coordinator/internal/store/storetest"
	"warmd/placement"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.etcd.io/etcd/pkg/v3/schedule.(*fifo).run"),
		goleak.IgnoreTopFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"))
}

func newElection(cl *clientv3.Client, name string, ttl int) *Election {
	return &Election{Client: cl, Prefix: "/w/", Name: name, Instance: name + ".1", TTL: ttl, Log: slog.New(slog.DiscardHandler)}
}

// candidate runs an election whose leader says so and stays until its ctx ends.
type candidate struct {
	*Election
	led  chan store.Fence
	lost chan struct{}
	stop func()
}

func stand(t *testing.T, e *Election) *candidate {
	ctx, cancel := context.WithCancel(t.Context())
	c := &candidate{Election: e, led: make(chan store.Fence, 8), lost: make(chan struct{}, 8)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = e.Run(ctx, func(ctx context.Context, f store.Fence) {
			c.led <- f
			<-ctx.Done()
			c.lost <- struct{}{}
		})
	}()
	c.stop = func() { cancel(); <-done }
	t.Cleanup(c.stop)
	return c
}

func TestOneLeadsAndASuccessorFollowsAtOnceWhenItLeaves(t *testing.T) {
	cl := storetest.StartEtcd(t).Client()
	a := stand(t, newElection(cl, "a", 60))
	fa := <-a.led
	b := stand(t, newElection(cl, "b", 60))
	require.Eventually(t, func() bool {
		living, err := b.Living(t.Context())
		return err == nil && living["a.1"] && living["b.1"]
	}, 20*time.Second, 5*time.Millisecond)
	leader, err := b.Leader(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "a", leader)
	assert.Empty(t, b.led)

	begin := time.Now()
	a.stop()
	fb := <-b.led
	assert.Less(t, time.Since(begin), 40*time.Second, "the lease is not waited for")
	assert.NotEqual(t, fa, fb)
	living, err := b.Living(t.Context())
	require.NoError(t, err)
	assert.Equal(t, map[string]bool{"b.1": true}, living)
}

// The zombie: a leader that does not notice the end of its lease goes on writing. Its
// writes are refused, and its Lead ends by itself.
func TestADeposedSweeperWritesNothing(t *testing.T) {
	cl := storetest.StartEtcd(t).Client()
	a := stand(t, newElection(cl, "a", 4))
	fence := <-a.led
	s := store.NewEtcd(cl, "/w/")
	before, err := s.Create(t.Context(), storetest.Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)

	lease, err := strconv.ParseInt(strings.TrimPrefix(fence.Key, "/w/leader/"), 16, 64)
	require.NoError(t, err)
	_, err = cl.Revoke(t.Context(), clientv3.LeaseID(lease))
	require.NoError(t, err)

	fx := &world{Records: s, records: []store.Record{before}, living: map[string]bool{}}
	zombie := New(Config{Instance: "a.1", Every: time.Millisecond, NodeGone: time.Nanosecond}, fx)
	zombie.Lead(t.Context(), fence) // returns, since its first write is refused
	after, err := s.Get(t.Context(), "p-1")
	require.NoError(t, err)
	assert.Equal(t, before, after)
	assert.Empty(t, fx.resumed)

	<-a.lost // the session notices later
	next := <-a.led
	assert.NotEqual(t, fence, next, "and it stands again with a new lease")
}

// While etcd is away no lease runs out, and nobody could take over. A leader that stood
// again afterwards would wait for its own old candidacy to run out, and nobody would lead.
func TestALeaderKeepsItsOfficeThroughALossOfEtcdThatIsLongerThanItsLease(t *testing.T) {
	etcd := storetest.StartEtcd(t)
	dialed, err := store.Dial(store.DialConfig{Endpoints: []string{etcd.Endpoint()}}) // connects again within 1 s
	require.NoError(t, err)
	t.Cleanup(func() { _ = dialed.Close() })
	a := stand(t, newElection(dialed, "a", 3))
	fence := <-a.led
	outlive := func() { // more than the lease has left
		t.Helper()
		select {
		case <-a.lost:
			t.Fatal("the office was given up")
		case <-time.After(a.ttl() + time.Second):
		}
	}
	etcd.Stop()
	outlive()
	etcd.Up()
	outlive()
	resp, err := etcd.Client().Get(t.Context(), fence.Key)
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 1)
	assert.Equal(t, fence.Rev, resp.Kvs[0].CreateRevision)
}

// Campaign alone would return with the key of a lease that ended while it waited.
func TestALeaseThatEndsWhileWaitingDoesNotLead(t *testing.T) {
	cl := storetest.StartEtcd(t).Client()
	a := stand(t, newElection(cl, "a", 60))
	<-a.led
	b := stand(t, newElection(cl, "b", 60))
	var waiting clientv3.LeaseID
	require.Eventually(t, func() bool {
		resp, err := cl.Get(t.Context(), "/w/leader/", clientv3.WithPrefix())
		if err != nil || len(resp.Kvs) != 2 {
			return false
		}
		for _, kv := range resp.Kvs {
			if string(kv.Value) == "b" {
				waiting = clientv3.LeaseID(kv.Lease)
			}
		}
		return waiting != 0
	}, 20*time.Second, 5*time.Millisecond)
	_, err := cl.Revoke(t.Context(), waiting)
	require.NoError(t, err)
	a.stop()
	f := <-b.led
	resp, err := cl.Get(t.Context(), f.Key)
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 1, "it leads with a key that exists")
	assert.Equal(t, f.Rev, resp.Kvs[0].CreateRevision)
}

// world is the sweeper's world in a test: a store, a list of what is known, and a
// fleet that may be nil.
type world struct {
	Records
	Agents
	records []store.Record
	living  map[string]bool
	fleet   placement.Fleet

	mu      sync.Mutex // guards records and resumed
	resumed []store.Record
}

func (w *world) know(records []store.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = records
}

func (w *world) All() []store.Record {
	w.mu.Lock()
	records := w.records
	w.mu.Unlock()
	if records != nil {
		return records
	}
	all, err := w.List(context.Background())
	if err != nil {
		return nil
	}
	return all
}
func (w *world) Fleet() placement.Fleet                          { return w.fleet }
func (w *world) Living(context.Context) (map[string]bool, error) { return maps.Clone(w.living), nil }
func (w *world) Resume(r store.Record) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resumed = append(w.resumed, r)
	return true
}
