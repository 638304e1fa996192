package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// The RealVLLM tests place models on a real, unmodified vLLM. They run when
// WARMD_TEST_REAL is set (make test-real); in CI a missing part is a failure.
const realRuntime = "vllm-0.32.0"

// smallArgs keeps the CPU engine small; both arms of every comparison get them.
var smallArgs = []string{"--dtype=bfloat16", "--enforce-eager", "--max-model-len=512", "--max-num-seqs=4"}

// host is one machine under test: its own etcd, coordinator and agent processes.
type host struct {
	dir, root, gossip        string
	etcd, coordinator, agent *proc
	coord                    *coordapi.Client
	node                     *agentapi.Client
	agentArgs                []string
	agentMore, coordMore     []string // further flags
}

func realRoot(t testing.TB) string {
	t.Helper()
	if os.Getenv("WARMD_TEST_REAL") == "" {
		if os.Getenv("CI") == "" {
			t.Skip("real vLLM: run with `make test-real`")
		}
		t.Fatal("WARMD_TEST_REAL is not set in CI: run `make test`, which installs vLLM and sets it")
	}
	all := os.Getenv("WARMD_TEST_RUNTIMES")
	if _, err := os.Stat(filepath.Join(all, realRuntime, "runtime.json")); err != nil {
		t.Fatalf("runtime %s is missing under %s: run `make runtimes`: %v", realRuntime, all, err)
	}
	// A root with this runtime alone: the other version's parked workers would be
	// counted as warm, too.
	root := t.TempDir()
	if err := os.Symlink(filepath.Join(all, realRuntime), filepath.Join(root, realRuntime)); err != nil {
		t.Fatal(err)
	}
	return root
}

// realModels makes the models of the tests once: opt-125m shapes, and a tiny one.
func realModels(t testing.TB, dir string) {
	t.Helper()
	for _, m := range []string{"opt-125m", "tiny"} {
		if out, err := selfCmd("model", "make", filepath.Join(dir, m), "--preset", m).CombinedOutput(); err != nil {
			t.Fatalf("model make: %v\n%s", err, out)
		}
	}
}

func selfCmd(args ...string) *exec.Cmd {
	self, _ := os.Executable()
	return exec.Command(self, append([]string{"play-warmd"}, args...)...)
}

// address is one that a process listens on, and its successor after it.
func address(t testing.TB) string {
	t.Helper()
	a, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return a.String()
}

// startHost runs etcd, a coordinator and an agent as three processes.
func startHost(t testing.TB, root, models string, slots int, change ...func(*host)) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "warmd-e2e-") // short: Unix socket paths end at 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &host{dir: dir, root: root}
	for _, f := range change {
		f(h)
	}
	h.startEtcd(t)
	h.gossip = address(t) // and the fleet address: a restarted agent keeps both
	h.agentArgs = []string{"play-warmd", "agent", "--name", "host1", "--data", dir + "/agent", "--run", dir + "/run", "--socket", dir + "/agent.sock",
		"--listen", address(t), "--gossip", h.gossip, "--runtimes", root, "--models", models, "--slots", fmt.Sprint(slots)}
	h.agentArgs = append(h.agentArgs, h.agentMore...)
	h.startAgent(t)
	h.startCoordinator(t)
	t.Cleanup(func() { h.endEngines(t) })
	return h
}

func (h *host) startCoordinator(t testing.TB) {
	t.Helper()
	etcdURL, err := os.ReadFile(filepath.Join(h.dir, "etcd", "url"))
	if err != nil {
		t.Fatal(err)
	}
	h.coordinator = start(t, "coordinator", append([]string{"play-warmd", "coordinator", "--name", "coord1", "--etcd", string(etcdURL),
		"--socket", h.dir + "/coordinator.sock", "--gossip", "127.0.0.1:0", "--join", h.gossip}, h.coordMore...)...)
	h.coord = coordClient(t, h.dir+"/coordinator.sock")
	eventually(t, 20*time.Second, "coordinator answers", func() error { _, err := h.coord.Fleet(t.Context()); return err })
}

func (h *host) startEtcd(t testing.TB) {
	_ = os.MkdirAll(filepath.Join(h.dir, "etcd"), 0o700)
	h.etcd, _ = startEtcd(t, filepath.Join(h.dir, "etcd"))
}

func (h *host) startAgent(t testing.TB) {
	h.agent = start(t, "agent", h.agentArgs...)
	h.node = agentClient(t, h.dir+"/agent.sock")
}

// endEngines leaves nothing running: an agent told to end its engines does it.
func (h *host) endEngines(t testing.TB) {
	h.agent.end(syscall.SIGKILL)
	last := start(t, "last-agent", append(slices.Clone(h.agentArgs), "--end-engines")...)
	eventually(t, 20*time.Second, "the last agent answers", func() error { _, err := h.node.Node(context.Background()); return err })
	last.end(syscall.SIGTERM)
	h.coordinator.end(syscall.SIGTERM)
	if out, _ := exec.Command("pgrep", "-af", h.dir+"/(run|agent)").Output(); len(out) > 0 {
		t.Errorf("processes left behind: %s", out)
	}
}

// warm waits until n parked workers are idle and returns how long that took.
func (h *host) warm(t testing.TB, n int, within time.Duration) time.Duration {
	t.Helper()
	return eventually(t, within, fmt.Sprintf("%d warm workers", n), func() error {
		s, err := h.node.Node(t.Context())
		if err != nil {
			return err
		}
		if _, _, _, _, warm := s.Capacity.Totals(); warm < n {
			return fmt.Errorf("%d warm, runtimes %+v, devices %+v", warm, s.Capacity.Runtimes, s.Capacity.Devices)
		}
		return nil
	})
}

// joined waits until the coordinator sees the node's exact capacity.
func (h *host) joined(t testing.TB) {
	t.Helper()
	eventually(t, 20*time.Second, "coordinator sees the node", func() error {
		f, err := h.coord.Fleet(t.Context())
		if err != nil {
			return err
		}
		for _, n := range f.Nodes {
			if n.Node == "host1" && n.Alive && !n.Summary && len(n.Devices) > 0 {
				return nil
			}
		}
		return fmt.Errorf("fleet %+v", f)
	})
}

func (h *host) place(t testing.TB, r placement.Request) placement.Placement {
	t.Helper()
	p, err := h.coord.Place(t.Context(), r, "ready", nil)
	if err != nil {
		t.Fatalf("place %s: %v", r.Model, err)
	}
	return p
}

func (h *host) release(t testing.TB, id string) {
	t.Helper()
	if _, err := h.coord.Release(t.Context(), id, 1); err != nil {
		t.Fatalf("release %s: %v", id, err)
	}
}

func TestRealVLLMWarmStartGivesTheTokensOfAStockStartManyTimesFaster(t *testing.T) {
	root, models := realRoot(t), t.TempDir()
	realModels(t, models)
	h := startHost(t, root, models, 1)
	h.warm(t, 1, 90*time.Second)
	h.joined(t)

	cold := h.place(t, placement.Request{Model: "opt-125m", Runtime: realRuntime, Start: placement.StartCold, Args: smallArgs})
	want, err := askTokens(t.Context(), cold, "Hello my name is", 8)
	if err != nil {
		t.Fatal(err)
	}
	noDevelopmentEndpoints(t, cold)
	h.release(t, cold.ID)
	h.warm(t, 1, 20*time.Second)

	begin := time.Now()
	warm := h.place(t, placement.Request{Model: "opt-125m", Runtime: realRuntime, Start: placement.StartWarm, Args: smallArgs})
	took := time.Since(begin)
	got, err := askTokens(t.Context(), warm, "Hello my name is", 8)
	if err != nil {
		t.Fatal(err)
	}
	if got != want || got == "" {
		t.Errorf("parked start answers %q, stock start %q", got, want)
	}
	noDevelopmentEndpoints(t, warm)
	if warm.Tier != placement.TierWarm || cold.Tier != placement.TierCold {
		t.Errorf("tiers %s and %s", warm.Tier, cold.Tier)
	}
	// Engines send their spans a moment after the start, not in the middle of it: otlp.Env.
	eventually(t, 10*time.Second, "the trace has vLLM's own spans", func() error {
		tr, err := h.coord.Trace(t.Context(), warm.ID)
		if err == nil && !slices.ContainsFunc(tr.Phases, func(p placement.Phase) bool { return p.Name == "Load weights" || p.Name == "Load model" }) {
			err = fmt.Errorf("trace %+v", tr.Phases)
		}
		return err
	})
	h.release(t, warm.ID)
	again := h.warm(t, 1, 10*time.Second)
	t.Logf("cold %.2f s, warm %.2f s (%.1fx), slot warm again %.0f ms after the release answered", cold.StartSeconds, took.Seconds(), cold.StartSeconds/took.Seconds(), again.Seconds()*1000)
}

// noDevelopmentEndpoints asks for what vLLM serves in its development mode only.
func noDevelopmentEndpoints(t *testing.T, p placement.Placement) {
	t.Helper()
	for path, method := range map[string]string{"/server_info": "GET", "/collective_rpc": "POST", "/sleep": "POST", "/wake_up": "POST", "/reset_prefix_cache": "POST",
		"/start_profile": "POST", "/v1/load_lora_adapter": "POST"} {
		req, err := http.NewRequestWithContext(t.Context(), method, p.Endpoint+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s start: %s %s answers %s", p.Tier, method, path, resp.Status)
		}
	}
}

func TestRealVLLMAgentKilledWhileServingNoCompletionFailsAndWorkersAreReadopted(t *testing.T) {
	root, models := realRoot(t), t.TempDir()
	realModels(t, models)
	h := startHost(t, root, models, 2)
	h.warm(t, 1, 90*time.Second)
	h.joined(t)
	p := h.place(t, placement.Request{Model: "tiny", Runtime: realRuntime, Args: smallArgs})
	before, err := h.node.Workers(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	var ok, failed atomic.Int64
	streaming := make(chan struct{})
	go func() {
		defer close(streaming)
		for ctx.Err() == nil {
			if _, err := askTokens(context.WithoutCancel(ctx), p, "x", 4); err != nil {
				t.Logf("completion: %v", err)
				failed.Add(1)
			}
			ok.Add(1)
		}
	}()
	for range 5 {
		seen := ok.Load()
		eventually(t, 20*time.Second, "completions go on", func() error {
			if n := ok.Load(); n < seen+5 {
				return fmt.Errorf("%d more", n-seen)
			}
			return nil
		})
		h.agent.end(syscall.SIGKILL)
		h.startAgent(t)
		took := eventually(t, 10*time.Second, "re-adopted", func() error {
			after, err := h.node.Workers(t.Context())
			if err != nil {
				return err
			}
			return sameWorkers(before, after)
		})
		t.Logf("re-adopted %d workers in %s", len(before), took.Round(time.Millisecond))
		s, err := h.node.Node(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if slots, free, busy, quarantined, warm := s.Capacity.Totals(); slots != 2 || free != 1 || busy != 1 || quarantined != 0 || warm != 1 {
			t.Errorf("capacity after re-adoption: slots %d free %d busy %d quarantined %d warm %d", slots, free, busy, quarantined, warm)
		}
	}
	stop()
	<-streaming
	if failed.Load() > 0 {
		t.Errorf("%d of %d completions failed", failed.Load(), ok.Load())
	}
	t.Logf("%d completions, %d failed, over 5 kills of the agent", ok.Load(), failed.Load())
	h.joined(t)
	h.release(t, p.ID)
	h.warm(t, 1, 10*time.Second)
}

func sameWorkers(before, after []agentapi.Worker) error {
	if len(before) != len(after) {
		return fmt.Errorf("%d workers, want %d: %+v", len(after), len(before), after)
	}
	for _, b := range before {
		if !slices.ContainsFunc(after, func(a agentapi.Worker) bool {
			return a.ID == b.ID && a.EnginePID == b.EnginePID && a.APIPID == b.APIPID && a.State == b.State && a.Placement == b.Placement
		}) {
			return fmt.Errorf("worker %+v is not in %+v", b, after)
		}
	}
	return nil
}

func TestRealVLLMEngineDeathIsReportedWithItsCauseThePairDiesAndTheSlotIsRefilled(t *testing.T) {
	root, models := realRoot(t), t.TempDir()
	realModels(t, models)
	h := startHost(t, root, models, 1)
	h.warm(t, 1, 90*time.Second)
	h.joined(t)
	for _, half := range []string{"engine", "API server"} {
		p := h.place(t, placement.Request{Model: "tiny", Runtime: realRuntime, Args: smallArgs})
		w := workerOf(t, h, p.ID)
		victim, other := w.EnginePID, w.APIPID
		if half != "engine" {
			victim, other = other, victim
		}
		if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		took := eventually(t, 5*time.Second, half+" death reported", func() error {
			got, err := h.node.Placement(t.Context(), p.ID)
			if err != nil {
				return err
			}
			if got.State != placement.Failed || !strings.Contains(got.Reason, half) {
				return fmt.Errorf("state %s reason %q", got.State, got.Reason)
			}
			return nil
		})
		eventually(t, 10*time.Second, "the other half is dead", func() error {
			if alive(other) {
				return fmt.Errorf("pid %d lives", other)
			}
			return nil
		})
		refill := h.warm(t, 1, 10*time.Second)
		t.Logf("%s kill -9: reported in %s, refilled in %s", half, took.Round(time.Millisecond), refill.Round(time.Millisecond))
	}
}

func workerOf(t *testing.T, h *host, id string) agentapi.Worker {
	t.Helper()
	ws, err := h.node.Workers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range ws {
		if w.Placement == id {
			return w
		}
	}
	t.Fatalf("no worker of %s in %+v", id, ws)
	return agentapi.Worker{}
}

func TestRealVLLMZygoteDeathHurtsNoWorkerAndTheNextGenerationTakesOver(t *testing.T) {
	root, models := realRoot(t), t.TempDir()
	realModels(t, models)
	h := startHost(t, root, models, 2)
	h.warm(t, 1, 90*time.Second)
	h.joined(t)
	p := h.place(t, placement.Request{Model: "tiny", Runtime: realRuntime, Args: smallArgs})
	w := workerOf(t, h, p.ID)
	zygote := parentOf(t, w.EnginePID)
	if err := syscall.Kill(zygote, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := askTokens(t.Context(), p, "Hello", 4); err != nil {
		t.Errorf("completion right after the zygote died: %v", err)
	}
	eventually(t, 90*time.Second, "next generation", func() error {
		s, err := h.node.Node(t.Context())
		if err != nil {
			return err
		}
		for _, rt := range s.Capacity.Runtimes {
			if rt.Name == realRuntime && rt.Zygote == "up" {
				return nil
			}
		}
		return fmt.Errorf("runtimes %+v", s.Capacity.Runtimes)
	})
	if !alive(w.EnginePID) || !alive(w.APIPID) {
		t.Error("the zygote's death took a worker with it")
	}
	q := h.place(t, placement.Request{Model: "tiny", Name: "second", Runtime: realRuntime, Args: smallArgs})
	if _, err := askTokens(t.Context(), q, "Hello", 4); err != nil {
		t.Error(err)
	}
	// The new generation ends a worker of the old one.
	h.release(t, p.ID)
	if alive(w.EnginePID) || alive(w.APIPID) {
		t.Error("release answered, but the old generation's worker lives")
	}
	h.release(t, q.ID)
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	f, err := statFields(pid)
	if err != nil {
		t.Fatal(err)
	}
	var ppid int
	if _, err := fmt.Sscan(f[1], &ppid); err != nil {
		t.Fatal(err)
	}
	return ppid
}

func TestRealVLLMModelThatCannotBeServedIsRefusedWithTheFileAndLosesNothing(t *testing.T) {
	root, models := realRoot(t), t.TempDir()
	realModels(t, models)
	h := startHost(t, root, models, 1)
	h.warm(t, 1, 90*time.Second)
	h.joined(t)
	alien := filepath.Join(models, "alien")
	copyModel(t, filepath.Join(models, "tiny"), alien)
	cfg, _ := os.ReadFile(filepath.Join(alien, "config.json"))
	if err := os.WriteFile(filepath.Join(alien, "config.json"), []byte(strings.Replace(string(cfg), "OPTForCausalLM", "MartianForCausalLM", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := h.coord.Place(t.Context(), placement.Request{Model: "alien", Runtime: realRuntime, Args: smallArgs}, "ready", nil)
	if err == nil || !strings.Contains(placement.AsError(err).Message+placement.AsError(err).Detail, "MartianForCausalLM") {
		t.Errorf("unknown architecture: %v", err)
	}
	h.warm(t, 1, 10*time.Second)
	p := h.place(t, placement.Request{Model: "tiny", Runtime: realRuntime, Args: smallArgs})
	h.release(t, p.ID)
}

func copyModel(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
