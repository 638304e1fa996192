package coordinator

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentapi "warmd/agent/api"
	"warmd/coordinator/internal/agenttest"
	"warmd/coordinator/internal/store/storetest"
	"warmd/placement"
)

// wire is a TCP connection to etcd that can fall silent, as that of a host does whose
// plug is pulled: nothing arrives any more, and nothing says so.
type wire struct {
	net.Listener
	mu     sync.Mutex
	silent bool
	open   []net.Conn
	copies sync.WaitGroup
}

func newWire(t *testing.T, socket string) *wire {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w := &wire{Listener: ln}
	w.copies.Go(func() {
		for {
			here, err := ln.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("unix", socket)
			if err != nil {
				_ = here.Close()
				continue
			}
			w.mu.Lock()
			w.open = append(w.open, here, there)
			w.mu.Unlock()
			w.copies.Go(func() { _, _ = io.Copy(deaf{there, w}, here) })
			w.copies.Go(func() { _, _ = io.Copy(deaf{here, w}, there) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		w.mu.Lock()
		for _, c := range w.open {
			_ = c.Close()
		}
		w.mu.Unlock()
		w.copies.Wait()
	})
	return w
}

func (w *wire) cut() { w.mu.Lock(); w.silent = true; w.mu.Unlock() }

// deaf swallows what is written once the wire is cut.
type deaf struct {
	net.Conn
	w *wire
}

func (d deaf) Write(b []byte) (int, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if d.w.silent {
		return len(b), nil
	}
	return d.Conn.Write(b)
}

// Four coordinators, the elected one among them, die while models load, just after they
// have renewed their leases of the default length. All that they left is taken over
// within 6 s, and finished by the same PUT.
func TestWhatDeadCoordinatorsLeftIsTakenOverWithinSixSeconds(t *testing.T) {
	etcd := storetest.StartEtcd(t)
	h := &agenttest.History{}
	a := agenttest.New("n1", 4, h)
	a.Serve(t)
	start := make(chan struct{})
	a.Start = func(ctx context.Context, _ string, _ agentapi.Claim) error {
		select {
		case <-start:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	nodes := agenttest.NewNodes(a).Live()
	t.Cleanup(func() {
		for _, p := range a.Held() {
			_, _ = a.Release(p.ID)
		}
	})

	socket := strings.TrimPrefix(etcd.Endpoint(), "unix://")
	ids := map[string]bool{}
	var kill []func()
	for i := range 4 {
		w := newWire(t, socket)
		cfg := DefaultConfig()
		cfg.Name, cfg.Endpoints, cfg.Socket = fmt.Sprintf("d%d", i), []string{"http://" + w.Addr().String()}, ""
		doomed, err := New(cfg, Options{View: nodes})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = doomed.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		kill = append(kill, func() { w.cut(); cancel() })
		var f interface {
			Follow(context.Context, func(placement.Progress) bool) error
		}
		require.Eventually(t, func() bool {
			leader, err := doomed.election.Leader(t.Context())
			if err != nil || leader != "d0" {
				return false
			}
			fl, err := doomed.placer.Place(request(fmt.Sprintf("req-%d", i)))
			f = fl
			return err == nil
		}, 10*time.Second, time.Millisecond)
		require.NoError(t, f.Follow(ctx, func(l placement.Progress) bool {
			if l.Placement != nil {
				ids[l.Placement.ID] = true
			}
			return l.Event != placement.EventAccepted
		}))
	}
	survivor, _, _ := startCoordinator(t, "c9", etcd, nodes, func(c *Config, _ *Options) { c.LeaseSeconds = DefaultConfig().LeaseSeconds })
	require.Len(t, ids, 4)
	leader, err := survivor.election.Leader(t.Context())
	require.NoError(t, err)
	require.Equal(t, "d0", leader)

	begin := time.Now()
	for _, k := range kill {
		k()
	}
	taken := map[string]time.Duration{}
	require.Eventually(t, func() bool {
		for _, r := range survivor.world.All() {
			if strings.HasPrefix(r.Owner, "c9.") && taken[r.ID] == 0 {
				taken[r.ID] = time.Since(begin)
			}
		}
		return len(taken) == len(ids)
	}, 15*time.Second, 5*time.Millisecond)
	for id, d := range taken {
		assert.Less(t, d, 10*time.Second, id) // a lease, and a busy machine; the hosts of packaging/nspawn hold 6 s
		t.Logf("%s taken over after %.2f s", id, d.Seconds())
	}
	close(start)
	require.Eventually(t, func() bool {
		for id := range ids {
			if r, err := survivor.world.Get(t.Context(), id); err != nil || r.State != placement.Ready || r.Attempt != 1 {
				return false
			}
		}
		return true
	}, 10*time.Second, 10*time.Millisecond, "and finished, on the slots they had")
	assert.Len(t, a.Held(), 4)
}

// One of two ways to etcd falls silent, as that to a stopped member does: its kernel
// still takes what is sent. Nobody's lease runs out, so nobody else leads, and placing
// goes on.
func TestASilentMemberOfEtcdCostsNoLeaseAndNoPlacement(t *testing.T) {
	etcd := storetest.StartEtcd(t)
	a := agenttest.New("n1", 64, &agenttest.History{})
	a.Serve(t)
	nodes := agenttest.NewNodes(a).Live()
	t.Cleanup(func() {
		for _, p := range a.Held() {
			_, _ = a.Release(p.ID)
		}
	})
	socket := strings.TrimPrefix(etcd.Endpoint(), "unix://")
	silent, sound := newWire(t, socket), newWire(t, socket)
	c, client, _ := startCoordinator(t, "c1", etcd, nodes, func(c *Config, _ *Options) {
		c.Endpoints = []string{"http://" + silent.Addr().String(), "http://" + sound.Addr().String()}
	})
	kv := etcd.Client()
	lease := func() (id int64) {
		got, err := kv.Get(t.Context(), "/warmd/coordinators/"+c.instance)
		require.NoError(t, err)
		if len(got.Kvs) == 0 {
			return 0
		}
		return got.Kvs[0].Lease
	}
	require.Eventually(t, func() bool {
		leader, err := c.election.Leader(t.Context())
		return err == nil && leader == "c1" && lease() != 0
	}, 10*time.Second, 10*time.Millisecond)
	for i := range 4 { // both ways are in use
		_, err := client.Place(t.Context(), request(fmt.Sprintf("before-%d", i)), "ready", nil)
		require.NoError(t, err)
	}
	before := lease()
	silent.cut()
	for i := range 24 { // six lives of a lease of 2 s, if each waits for the silent one
		begin := time.Now()
		require.Eventually(t, func() bool {
			_, err := client.Place(t.Context(), request(fmt.Sprintf("after-%d", i)), "ready", nil)
			return err == nil
		}, 10*time.Second, 10*time.Millisecond)
		time.Sleep(time.Until(begin.Add(250 * time.Millisecond)))
		require.Equal(t, before, lease(), "the lease lives")
	}
}
