package coordinator

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"warmd/coordinator/api"
	"warmd/coordinator/internal/agenttest"
	"warmd/coordinator/internal/store"
	"warmd/coordinator/internal/store/storetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.etcd.io/etcd/pkg/v3/schedule.(*fifo).run"),
		goleak.IgnoreTopFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"))
}

// rig is a coordinator over a real etcd and agents over real HTTP.
type rig struct {
	*Coordinator
	etcd   *storetest.Etcd
	agents []*agenttest.Agent
	nodes  *agenttest.Nodes
	client *api.Client
	reg    *prometheus.Registry
}

// newRig starts a coordinator over n agents of two slots each.
func newRig(t testing.TB, n int, change ...func(*Config, *Options)) *rig {
	t.Helper()
	r := &rig{etcd: storetest.StartEtcd(t)}
	h := &agenttest.History{}
	for i := range n {
		a := agenttest.New(fmt.Sprintf("n%d", i+1), 2, h)
		a.Serve(t)
		r.agents = append(r.agents, a)
	}
	r.nodes = agenttest.NewNodes(r.agents...).Live()
	t.Cleanup(func() {
		for _, a := range r.agents {
			for _, p := range a.Held() {
				_, _ = a.Release(p.ID)
			}
		}
	})
	r.Coordinator, r.client, r.reg = startCoordinator(t, "c1", r.etcd, r.nodes, change...)
	return r
}

func startCoordinator(t testing.TB, name string, etcd *storetest.Etcd, view View, change ...func(*Config, *Options)) (*Coordinator, *api.Client, *prometheus.Registry) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Name, cfg.LeaseSeconds, cfg.Endpoints = name, 2, []string{etcd.Endpoint()}
	dir, err := os.MkdirTemp("", "wco") // short: socket paths have 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	reg := prometheus.NewRegistry()
	opt := Options{View: view, Listeners: []net.Listener{ln}, Registerer: reg, Version: "v0.0.0-test"}
	for _, f := range change {
		f(&cfg, &opt)
	}
	c, err := New(cfg, opt)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	client, err := api.NewClient(ln.Addr().String(), nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		cancel()
		client.Close()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			t.Error("the coordinator did not stop within 20 s")
		}
	})
	require.Eventually(t, func() bool {
		c.placer.Counts()
		st, err := client.Status(context.Background())
		return err == nil && st.Leader != ""
	}, 10*time.Second, 10*time.Millisecond)
	return c, client, reg
}

var _ recordStore = (*store.Mem)(nil)
