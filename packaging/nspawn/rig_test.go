package nspawn

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/packaging/nspawn/host"
	"warmd/placement"
)

const (
	slots         = 16 // on each host
	engineRuntime = "test"
	engineStarts  = 400 * time.Millisecond
	slowRuntime   = "slow"           // takes 8 s to start
	nodeGone      = 45 * time.Second // longer than a watchdog takes, shorter than a test may
	enginePath    = "/opt/test/engine.py"
)

// node is a host of the fleet with clients of what runs there. They go over the
// Unix sockets as root; those with TCP in their name over TLS as an admin.
type node struct {
	*host.Host
	agent, agentTCP             *agentapi.Client
	coordinator, coordinatorTCP *coordapi.Client
}

// fleet is three hosts, each with an agent, a coordinator and a member of etcd, all
// talking over mutual TLS and encrypted gossip.
type fleet struct {
	nodes []*node
	certs *certificates
	etcd  *etcdCluster
	kv    *clientv3.Client
	turn  atomic.Uint32
	slots int // on each host

	// What a run of the suite of fleet_test.go is like, and what it has counted.
	etcdVersion         string
	thorough            bool
	stood               *host.Standstill // in this test
	made, lost, doubled int
}

var oneFleet struct {
	once sync.Once
	f    *fleet
}

// theFleet is the fleet that tests share. A test leaves it whole and empty.
func theFleet(t *testing.T) *fleet {
	t.Helper()
	hosts := three(t)
	oneFleet.once.Do(func() { oneFleet.f = makeFleet(t, hosts, func(*host.Host) {}) })
	if oneFleet.f == nil {
		t.Fatal("the fleet could not be set up: see the first test that wanted it")
	}
	oneFleet.f.untilWhole(t, 30*time.Second)
	return oneFleet.f
}

// makeFleet installs the packages on hosts and sets them up as the README tells an
// operator to. more is done on each before its agent starts.
func makeFleet(t *testing.T, hosts []*host.Host, more func(*host.Host)) *fleet {
	t.Helper()
	begin := time.Now()
	f := &fleet{slots: slots}
	packages := debs(t)
	engine, err := os.ReadFile("testdata/engine.py")
	require.NoError(t, err)
	each(t, hosts, func(h *host.Host) {
		h.Install(t, packages...)
		h.Write(t, enginePath, string(engine), 0o644)
		h.Run(t, "install -d /srv/models/any")
		for name, delay := range map[string]string{engineRuntime: fmt.Sprint(engineStarts.Milliseconds()), slowRuntime: "8000"} {
			h.Run(t, "warmd runtime add "+name+" --device cpu --exec -- python3 "+enginePath+
				" --start-ms "+delay+" --host "+h.Addr+" --port {port} --model {model} --name {name}")
		}
		more(h)
	})
	f.certs = issueCertificates(t, hosts)
	writeGossipKeys(t, hosts, newGossipKey())
	f.etcd = startEtcd(t, hosts, currentEtcd(t), f.certs)
	f.kv = f.etcd.client(t)
	each(t, hosts, func(h *host.Host) { configure(t, h, hosts, f.etcd) })
	for _, h := range hosts {
		f.nodes = append(f.nodes, clientsOf(t, h, f.certs))
	}
	f.untilWhole(t, time.Minute)
	figure("fleet_set_up_seconds", seconds(time.Since(begin)))
	return f
}

// each does something on all hosts at once.
func each(t testing.TB, hosts []*host.Host, do func(*host.Host)) {
	t.Helper()
	var wg sync.WaitGroup
	for _, h := range hosts {
		wg.Go(func() { do(h) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// debs are the packages under test.
func debs(t testing.TB) []string {
	t.Helper()
	pattern := os.Getenv("WARMD_TEST_DEBS")
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("no packages match WARMD_TEST_DEBS=%q: run `make test-hosts`, which builds them", pattern)
	}
	return found
}

// configure writes what an operator writes, and starts agent and coordinator.
func configure(t *testing.T, h *host.Host, hosts []*host.Host, etcd *etcdCluster) {
	t.Helper()
	var join []string
	for _, o := range hosts {
		join = append(join, o.Name+":7946")
	}
	h.Write(t, "/etc/warmd/agent.toml", fmt.Sprintf(`
data_dir = "/var/lib/warmd/agent"
runtimes_dir = "/var/lib/warmd/runtimes"
script_dir = "/usr/lib/warmd/python"
model_roots = ["/srv/models"]
endpoint_host = %[1]q
advertise = "%[1]s:7710"
[devices.cpu-0]
slots = %[2]d
[tls]
ca = "/etc/warmd/tls/ca.crt"
cert = "/etc/warmd/tls/agent.crt"
key = "/etc/warmd/tls/agent.key"
[gossip]
listen = "%[1]s:7946"
join = %[3]s
label = "hosts"
keys_file = "/etc/warmd/gossip-agent.keys"
`, h.Addr, slots, tomlList(join)), 0o644)
	h.Write(t, "/etc/warmd/coordinator.toml", fmt.Sprintf(`
etcd_endpoints = %[2]s
etcd_ca = "/etc/warmd/tls/etcd-ca.crt"
etcd_cert = "/etc/warmd/tls/etcd.crt"
etcd_key = "/etc/warmd/tls/etcd.key"
node_gone_seconds = %[4]g
[tls]
ca = "/etc/warmd/tls/ca.crt"
cert = "/etc/warmd/tls/coordinator.crt"
key = "/etc/warmd/tls/coordinator.key"
[gossip]
listen = "%[1]s:7947"
join = %[3]s
label = "hosts"
keys_file = "/etc/warmd/gossip-coordinator.keys"
`, h.Addr, tomlList(etcd.endpoints()), tomlList(join), nodeGone.Seconds()), 0o644)
	for unit, port := range map[string]string{"warmd-agent.socket": "7710", "warmd-coordinator.socket": "7711"} {
		h.Write(t, "/etc/systemd/system/"+unit+".d/fleet.conf", "[Socket]\nListenStream="+h.Addr+":"+port+"\n", 0o644)
	}
	h.Run(t, `systemctl daemon-reload
systemctl stop warmd-agent.service warmd-agent.socket
systemctl enable --now warmd-coordinator.socket warmd-coordinator.service
systemctl start warmd-agent.socket warmd-agent.service`)
}

func tomlList(words []string) string {
	var quoted []string
	for _, w := range words {
		quoted = append(quoted, strconv.Quote(w))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// clientsOf makes the clients of a host. They find it again after a reboot.
func clientsOf(t testing.TB, h *host.Host, certs *certificates) *node {
	t.Helper()
	// A pool of a bounded size, as any client that asks often has: without a bound a
	// server that comes back meets one handshake for each request that waited.
	pool := func(dial func(ctx context.Context, network, address string) (net.Conn, error), tls *tls.Config) *http.Transport {
		return &http.Transport{DialContext: dial, TLSClientConfig: tls, MaxConnsPerHost: 32, MaxIdleConnsPerHost: 32, IdleConnTimeout: 30 * time.Second}
	}
	unix := func(path string) *http.Transport {
		return pool(func(ctx context.Context, _, _ string) (net.Conn, error) { return h.DialUnix(ctx, path) }, nil)
	}
	tcp := pool(lab.Dial, certs.client("admin"))
	n := &node{Host: h}
	var err [4]error
	n.agent, err[0] = agentapi.NewClient("http://local", unix("/run/warmd/agent.sock"))
	n.coordinator, err[1] = coordapi.NewClient("http://local", unix("/run/warmd/coordinator.sock"))
	n.agentTCP, err[2] = agentapi.NewClient("https://"+h.Name+":7710", tcp)
	n.coordinatorTCP, err[3] = coordapi.NewClient("https://"+h.Name+":7711", tcp)
	for _, e := range err {
		require.NoError(t, e)
	}
	return n
}

// hosts are those of the fleet.
func (f *fleet) hosts() (all []*host.Host) {
	for _, n := range f.nodes {
		all = append(all, n.Host)
	}
	return all
}

// untilWhole waits until every coordinator sees every node alive, with its runtimes
// and all of its slots, and etcd.
func (f *fleet) untilWhole(t testing.TB, within time.Duration) {
	t.Helper()
	host.Until(t, within, "the fleet is whole", func() error {
		for _, n := range f.nodes {
			if err := f.wholeFor(t, n, nil); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
		}
		return nil
	})
}

// view is the fleet as a coordinator sees it that is well, with etcd and a leader.
func (n *node) view(t testing.TB) (placement.Fleet, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	st, err := n.coordinator.Status(ctx)
	if err != nil {
		return placement.Fleet{}, err
	}
	if st.Etcd != "ok" || st.Leader == "" {
		return placement.Fleet{}, fmt.Errorf("status %+v", st)
	}
	return n.coordinator.Fleet(ctx)
}

// wholeFor asks one coordinator. Nodes may have slots that are busy.
func (f *fleet) wholeFor(t testing.TB, n *node, busy map[string]int) error {
	view, err := n.view(t)
	if err != nil {
		return err
	}
	for _, m := range f.nodes {
		i := slices.IndexFunc(view.Nodes, func(v placement.NodeView) bool { return v.Node == m.Name && v.Alive })
		if i < 0 {
			return fmt.Errorf("%s is not alive: %+v", m.Name, view.Nodes)
		}
		v := view.Nodes[i]
		if total, free, _, _, _ := v.Totals(); total != f.slots || free != total-busy[m.Name] || len(v.Runtimes) == 0 {
			return fmt.Errorf("%s has %d of %d slots free, and %d runtimes", m.Name, free, total, len(v.Runtimes))
		}
		for _, r := range v.Runtimes {
			if r.Kind == "vllm" && r.Zygote != "up" || r.Problem != "" {
				return fmt.Errorf("%s: zygote of %s: %s %s", m.Name, r.Name, r.Zygote, r.Problem)
			}
		}
	}
	return nil
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }
