package nspawn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/packaging/nspawn/host"
	"warmd/placement"
)

const (
	vllmRuntime = "vllm-0.32.0" // as `make runtimes` installs it
	soloSlots   = 3
	soloEtcd    = "solo-etcd.service"
)

// imports is for a zygote's imports: 10 s on an idle machine, minutes on a busy one.
const imports = 6 * time.Minute

// smallArgs keep a CPU engine small.
var smallArgs = []string{"--dtype=bfloat16", "--enforce-eager", "--max-model-len=512", "--max-num-seqs=4"}

// solo is a host with all of warmd on it: an agent with an unmodified vLLM, a
// coordinator, and the etcd that Debian ships.
type solo struct {
	*host.Host
	agent       *agentapi.Client
	coordinator *coordapi.Client
}

var oneSolo struct {
	once sync.Once
	s    *solo
}

// theSolo is the host that tests of engines share, because a vLLM takes long to
// import. It is whole and empty, whatever became of the test before.
func theSolo(t *testing.T) *solo {
	t.Helper()
	oneSolo.once.Do(func() { oneSolo.s = makeSolo(t) })
	if oneSolo.s == nil {
		t.Fatal("the host could not be set up: see the first test that wanted it")
	}
	lab.Explain(t)
	oneSolo.s.empty(t)
	oneSolo.s.untilWhole(t)
	return oneSolo.s
}

// makeSolo does what the README tells an operator to do.
func makeSolo(t *testing.T) *solo {
	t.Helper()
	begin := time.Now()
	dir := filepath.Join(runtimesDir(), vllmRuntime)
	binds, err := host.RuntimeBinds(dir)
	require.NoError(t, err)
	h, err := lab.Boot(t.Context(), "solo", host.Spec{Bind: binds})
	require.NoError(t, err)
	lab.Explain(t)
	h.Install(t, thisRelease(t).deb...)
	h.AdoptRuntime(t, dir)
	h.Run(t, "warmd model make /srv/models/tiny --preset tiny --python "+dir+"/venv/bin/python")
	engine, err := os.ReadFile("testdata/engine.py")
	require.NoError(t, err)
	h.Write(t, enginePath, string(engine), 0o644)
	h.Run(t, "warmd runtime add "+lonerRuntime+" --device cpu --exec -- "+lonerCommand(h.Addr))
	h.Write(t, "/etc/warmd/agent.toml", fmt.Sprintf(`
data_dir = "/var/lib/warmd/agent"
runtimes_dir = "/var/lib/warmd/runtimes"
script_dir = "/usr/lib/warmd/python"
model_roots = ["/srv/models"]
endpoint_host = %q
advertise = "127.0.0.1:7710"
[devices.cpu-0]
slots = %d
[gossip]
listen = "127.0.0.1:7946"
join = ["127.0.0.1:7947"]
`, h.Addr, soloSlots), 0o644)
	h.Write(t, "/etc/warmd/coordinator.toml", `
etcd_endpoints = ["http://127.0.0.1:2379"]
[gossip]
listen = "127.0.0.1:7947"
join = ["127.0.0.1:7946"]
`, 0o644)
	h.Write(t, "/etc/systemd/system/warmd-agent.socket.d/fleet.conf", "[Socket]\nListenStream=127.0.0.1:7710\n", 0o644)
	h.Write(t, "/etc/systemd/system/"+soloEtcd, "[Service]\nType=notify\nStateDirectory=solo-etcd\nExecStart="+debianEtcd+" --data-dir /var/lib/solo-etcd\n", 0o644)
	h.Run(t, `systemctl daemon-reload
systemctl start `+soloEtcd+`
systemctl stop warmd-agent.service warmd-agent.socket
systemctl start warmd-agent.socket
systemctl start --no-block warmd-agent.service
systemctl enable -q --now warmd-coordinator.socket warmd-coordinator.service`)
	s := soloClients(t, h)
	s.untilWhole(t)
	figure("solo_set_up_seconds", seconds(time.Since(begin)))
	return s
}

// runtimesDir is where make installs runtimes.
func runtimesDir() string {
	if dir := os.Getenv("WARMD_TEST_RUNTIMES"); dir != "" {
		return dir
	}
	return filepath.Join(cacheDir(), "runtimes")
}

// soloClients go over the Unix sockets, as root.
func soloClients(t testing.TB, h *host.Host) *solo {
	t.Helper()
	unix := func(path string) *http.Transport {
		return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return h.DialUnix(ctx, path) }}
	}
	s := &solo{Host: h}
	var err [2]error
	s.agent, err[0] = agentapi.NewClient("http://local", unix("/run/warmd/agent.sock"))
	s.coordinator, err[1] = coordapi.NewClient("http://local", unix("/run/warmd/coordinator.sock"))
	require.NoError(t, errors.Join(err[:]...))
	return s
}

// untilWhole waits until every slot is free, a worker waits warm, and the
// coordinator knows it.
func (s *solo) untilWhole(t testing.TB) {
	t.Helper()
	host.Until(t, imports, "the host is whole", func() error {
		if err := s.right(t, 0); err != nil {
			return err
		}
		st, err := s.node(t)
		if err != nil {
			return err
		}
		if _, _, _, _, warm := st.Capacity.Totals(); warm < 1 || zygote(st.Capacity) != "up" {
			return fmt.Errorf("%d warm, zygote %s", warm, zygote(st.Capacity))
		}
		return nil
	})
}

func (s *solo) node(t testing.TB) (agentapi.NodeStatus, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return s.agent.Node(ctx)
}

func zygote(c placement.Capacity) string {
	i := slices.IndexFunc(c.Runtimes, func(r placement.Runtime) bool { return r.Name == vllmRuntime })
	if i < 0 {
		return "of no runtime"
	}
	return strings.TrimSpace(c.Runtimes[i].Zygote + " " + c.Runtimes[i].Problem)
}

// right says whether agent and coordinator both know the host as it is: so many
// slots busy, all others free.
func (s *solo) right(t testing.TB, busy int) error {
	if err := s.rightForAgent(t, busy); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	fleet, err := s.coordinator.Fleet(ctx)
	if err != nil {
		return err
	}
	for _, n := range fleet.Nodes {
		if n.Node == s.Name && n.Alive {
			return inOrder("coordinator", n.Capacity, busy)
		}
	}
	return fmt.Errorf("the coordinator sees no such node: %+v", fleet.Nodes)
}

func (s *solo) rightForAgent(t testing.TB, busy int) error {
	st, err := s.node(t)
	if err != nil {
		return err
	}
	return inOrder("agent", st.Capacity, busy)
}

func inOrder(who string, c placement.Capacity, busy int) error {
	if slots, free, b, quarantined, _ := c.Totals(); slots != soloSlots || b != busy || free != slots-busy || quarantined != 0 {
		return fmt.Errorf("the %s says: %d slots, %d free, %d busy, %d quarantined", who, slots, free, b, quarantined)
	}
	return nil
}

// place puts a model on the host and answers when it serves.
func (s *solo) place(t testing.TB, r placement.Request) placement.Placement {
	t.Helper()
	p, err := s.coordinator.Place(t.Context(), r, "ready", nil)
	require.NoError(t, err)
	return p
}

func (s *solo) release(t testing.TB, id string) {
	t.Helper()
	_, err := s.coordinator.Release(t.Context(), id, 1)
	require.NoError(t, err)
}

// empty releases what is left.
func (s *solo) empty(t testing.TB) {
	t.Helper()
	left, err := s.coordinator.Placements(t.Context(), false)
	require.NoError(t, err)
	for _, p := range left {
		s.release(t, p.ID)
	}
}

// tiny asks for a small model on the real vLLM.
func tiny(name string) placement.Request {
	return placement.Request{Model: "tiny", Name: name, Runtime: vllmRuntime, Start: placement.StartWarm, Args: smallArgs, TimeoutSeconds: 120}
}

// worker are the processes of the worker that serves a placement.
func (s *solo) worker(t testing.TB, p placement.Placement) []host.Process {
	t.Helper()
	all := s.Processes(t, func(x host.Process) bool { return strings.HasSuffix(x.Cgroup, "/worker-"+p.Worker) })
	slices.SortFunc(all, func(a, b host.Process) int { return a.Pid - b.Pid })
	return all
}

// unit is the one process of a service of ours, nil while it does not run.
func (s *solo) unit(t testing.TB, name string) *host.Process {
	t.Helper()
	all := s.Processes(t, func(x host.Process) bool { return x.Cgroup == "/system.slice/"+name })
	if len(all) != 1 {
		return nil
	}
	return &all[0]
}
