package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"warmd/agent/api"
	"warmd/agent/internal/device"
	"warmd/agent/runtime"
	"warmd/placement"
)

// agentEnv makes the test binary an agent: the thing that is killed must be a
// process.
const agentEnv = "WARMD_TEST_AGENT"

type agentProcess struct {
	Config    Config
	Manifests []runtime.Manifest
}

func TestMain(m *testing.M) {
	if raw := os.Getenv(agentEnv); raw != "" {
		beAgent(raw)
		return
	}
	goleak.VerifyTestMain(m)
}

func beAgent(raw string) {
	var p agentProcess
	if err := json.Unmarshal([]byte(raw), &p); err != nil {
		panic(err)
	}
	a, err := New(p.Config, Options{
		Manifests: p.Manifests, Ready: func() { fmt.Println("ready") }, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err == nil {
		err = a.Run(context.Background())
	}
	fmt.Println("ended:", err)
	os.Exit(1)
}

// spawn runs the node's agent as a process and returns what kills it with -9.
func (n *node) spawn() (kill func()) {
	n.t.Helper()
	raw, err := json.Marshal(agentProcess{n.cfg, n.opt.Manifests})
	require.NoError(n.t, err)
	self, err := os.Executable()
	require.NoError(n.t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), agentEnv+"="+string(raw))
	out, err := cmd.StdoutPipe()
	require.NoError(n.t, err)
	cmd.Stderr = testWriter{n.t}
	require.NoError(n.t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(n.t, err)
	require.Equal(n.t, "ready", strings.TrimSpace(line))
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			n.client.Close()
		}
	}
	n.t.Cleanup(func() { // and then everything that it left
		kill()
		if n.stop != nil {
			_ = n.stop()
		}
		end := n.cfg
		end.EndEngines = true
		n.run(end)
		require.NoError(n.t, n.stop())
	})
	return kill
}

func TestTheTraceOfAStartOutlivesTheAgentThatRecordedIt(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	kill := n.spawn()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_ = n.client.Place(ctx, "p1", api.Claim{Attempt: 1, Request: placement.Request{Model: "tiny", Name: "slow"}, DeadlineSeconds: 60}, func(placement.Progress) bool { return true })
	}()
	recorded := func() bool {
		files, _ := filepath.Glob(filepath.Join(n.cfg.DataDir, "traces", "*.trace.json"))
		if len(files) != 1 {
			return false
		}
		raw, err := os.ReadFile(files[0])
		return err == nil && strings.Contains(string(raw), `"spawn"`)
	}
	require.Eventually(t, recorded, 10*time.Second, 10*time.Millisecond, "what is known is on the disk while the start goes on")
	was, err := n.client.Trace(t.Context(), "p1")
	require.NoError(t, err)
	require.Zero(t, was.Total)
	kill()

	n.run(n.cfg)
	last := placement.Progress{}
	require.NoError(t, n.client.Place(t.Context(), "p1", api.Claim{Attempt: 1, Request: placement.Request{Model: "tiny", Name: "slow"}, DeadlineSeconds: 60}, func(p placement.Progress) bool { last = p; return true }))
	require.Equal(t, placement.EventReady, last.Event, "%+v", last.Error)
	is, err := n.client.Trace(t.Context(), "p1")
	require.NoError(t, err)
	require.Equal(t, was.TraceID, is.TraceID)
	require.Greater(t, is.Total, 1.0, "from the request that the first agent got")
	require.Empty(t, is.Failed)
	var names []string
	for _, p := range is.Phases {
		names = append(names, p.Name)
	}
	require.Subset(t, names, []string{"journal", "spawn", "first token"})
}

func TestKillingTheAgentLosesNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	kill := n.spawn()
	last, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Equal(t, placement.EventReady, last.Event, "%+v", last.Error)
	before, err := n.client.Workers(t.Context())
	require.NoError(t, err)
	kill()
	require.NoError(t, device.Probe(t.Context(), last.Placement.Endpoint, "tiny"), "the engine goes on answering")

	n.run(n.cfg)
	s, err := n.client.Node(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, s.Capacity.Devices[0].Busy)
	require.Equal(t, 1, s.Capacity.Devices[0].Free)
	require.Equal(t, before[0].ID, s.Workers[0].ID)
	require.Equal(t, before[0].EnginePID, s.Workers[0].EnginePID)
	p, err := n.client.Placement(t.Context(), "p1")
	require.NoError(t, err)
	require.Equal(t, last.Placement.Endpoint, p.Endpoint)
	require.Equal(t, placement.Ready, p.State)

	require.NoError(t, syscall.Kill(s.Workers[0].EnginePID, syscall.SIGKILL))
	died := time.Now()
	for p.State == placement.Ready {
		p, err = n.client.Placement(t.Context(), "p1")
		require.NoError(t, err)
		require.Less(t, time.Since(died), 10*time.Second, "an adopted worker's death is noticed like any other's")
	}
	require.Equal(t, placement.Failed, p.State)
	require.Contains(t, p.Reason, "the engine died")
}

// The agent dies while an engine starts: the next one goes on with the start, and
// the coordinator's second PUT follows it.
func TestKillingTheAgentInAStartGoesOnWithIt(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	kill := n.spawn()
	accepted := make(chan struct{})
	broken := make(chan error, 1)
	go func() {
		broken <- n.client.Place(context.Background(), "p1", claimOf(1, placement.Request{Model: "tiny", Name: "slow"}), func(p placement.Progress) bool {
			if p.Event == placement.EventAccepted {
				close(accepted)
			}
			return true
		})
	}()
	<-accepted
	kill()
	require.Error(t, <-broken, "the outcome is unknown")
	n.run(n.cfg)
	last, err := n.place("p1", 1, placement.Request{Model: "tiny", Name: "slow"})
	require.NoError(t, err)
	require.Equal(t, placement.EventReady, last.Event, "%+v", last.Error)
	require.NoError(t, device.Probe(t.Context(), last.Placement.Endpoint, "slow"))
	require.Equal(t, 1, n.device().Busy)
}

// A worker that died while no agent ran is reported, not forgotten.
func TestAWorkerLostWhileTheAgentWasAwayIsReported(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	kill := n.spawn()
	_, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	ws, err := n.client.Workers(t.Context())
	require.NoError(t, err)
	kill()
	require.NoError(t, syscall.Kill(ws[0].EnginePID, syscall.SIGKILL))
	n.run(n.cfg)
	require.Eventually(t, func() bool {
		p, err := n.client.Placement(t.Context(), "p1")
		return err == nil && p.State == placement.Failed
	}, 10*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { return n.device().Free == 2 }, 10*time.Second, 10*time.Millisecond)
}

// slowLines is a journal that takes its time, as everything does on a host that swaps.
type slowLines struct{ once sync.Once }

func (l *slowLines) Send(string, map[string]string) error {
	l.once.Do(func() { <-time.After(3 * time.Second) })
	return nil
}

// What takes an agent long when it starts says nothing about its workers: here the
// last words of a dead engine, for a journal that is slow.
func TestAnAgentThatStartsSlowlyAdoptsAllTheSame(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	kill := n.spawn()
	_, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	first, err := n.client.Workers(t.Context())
	require.NoError(t, err)
	last, err := n.place("p2", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Equal(t, placement.EventReady, last.Event, "%+v", last.Error)
	kill()
	require.NoError(t, syscall.Kill(first[0].EnginePID, syscall.SIGKILL))
	n.opt.EngineLines = new(slowLines)
	n.run(n.cfg)
	p2, err := n.client.Placement(t.Context(), "p2")
	require.NoError(t, err)
	require.Equal(t, placement.Ready, p2.State, p2.Reason)
	require.NoError(t, device.Probe(t.Context(), p2.Endpoint, "tiny"))
	require.Zero(t, n.device().Quarantined)
}

// Without its journal the agent cannot explain a serving worker: it is
// quarantined, and goes on serving.
func TestALostJournalQuarantinesAndKillsNothing(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"gone":  os.Remove,
		"noise": func(path string) error { return os.WriteFile(path, []byte("wjF1 this is not a journal"), 0o600) },
		"cut":   func(path string) error { return os.Truncate(path, 20) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, nil)
			kill := n.spawn()
			last, err := n.place("p1", 1, placement.Request{Model: "tiny"})
			require.NoError(t, err)
			kill()
			require.NoError(t, damage(filepath.Join(n.cfg.DataDir, journalFile)))
			n.run(n.cfg)
			d := n.device()
			require.Equal(t, 1, d.Quarantined)
			require.Equal(t, 1, d.Free)
			ws, err := n.client.Workers(t.Context())
			require.NoError(t, err)
			require.Equal(t, "quarantined", ws[0].State)
			require.Contains(t, ws[0].Problem, "p1")
			require.NoError(t, device.Probe(t.Context(), last.Placement.Endpoint, "tiny"), "it goes on serving")
			other, err := n.place("p2", 1, placement.Request{Model: "tiny"})
			require.NoError(t, err)
			require.Equal(t, placement.EventReady, other.Event)
			require.NoError(t, syscall.Kill(ws[0].EnginePID, syscall.SIGKILL))
			require.Eventually(t, func() bool { return n.device().Quarantined == 0 }, 10*time.Second, 10*time.Millisecond)
		})
	}
}

func TestDevModeEndsEverything(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *Config) { c.EndEngines = true })
	n.run(n.cfg)
	_, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	ws, err := n.client.Workers(t.Context())
	require.NoError(t, err)
	require.NoError(t, n.stop())
	require.ErrorIs(t, syscall.Kill(ws[0].EnginePID, 0), syscall.ESRCH)
	n.run(n.cfg)
	p, err := n.client.Placement(t.Context(), "p1")
	require.NoError(t, err)
	require.Equal(t, placement.Failed, p.State)
	require.Contains(t, p.Reason, "dev mode")
	require.Equal(t, 2, n.device().Free)
	require.NoError(t, n.stop())
}
