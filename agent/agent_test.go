package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/api"
	"warmd/agent/internal/device"
	"warmd/agent/internal/gpu"
	"warmd/agent/runtime"
	"warmd/placement"
)

// node is a real agent on one CPU device with one exec runtime, over a Unix
// socket, in a folder of its own.
type node struct {
	t      *testing.T
	dir    string
	cfg    Config
	opt    Options
	agent  *Agent
	client *api.Client
	stop   func() error
}

// newNode makes a node that ends its engines; kill -9 is told by stop with
// EndEngines off.
func newNode(t *testing.T, change func(*Config)) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "wd") // short: socket paths have 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() {
		left, err := exec.Command("pgrep", "-f", dir+"/").Output() // pids only: nothing is killed by its name
		require.Error(t, err, "processes are left: %s", left)
		_ = os.RemoveAll(dir)
	})
	python, err := exec.LookPath("python3")
	require.NoError(t, err, "these tests need python3")
	script, err := filepath.Abs("testdata/serve.py")
	require.NoError(t, err)
	model := filepath.Join(dir, "models", "tiny")
	require.NoError(t, os.MkdirAll(model, 0o755))
	cfg := DefaultConfig()
	cfg.Node, cfg.DataDir, cfg.RunDir, cfg.LogDir = "n1", filepath.Join(dir, "data"), filepath.Join(dir, "run"), filepath.Join(dir, "log")
	cfg.RuntimesDir, cfg.Socket = filepath.Join(dir, "runtimes"), filepath.Join(dir, "a.sock")
	cfg.ModelRoots, cfg.Device = []string{filepath.Join(dir, "models")}, "cpu"
	cfg.Devices = map[string]DeviceConfig{gpu.CPUDevice: {Slots: 2}}
	if change != nil {
		change(&cfg)
	}
	n := &node{t: t, dir: dir, cfg: cfg, opt: Options{
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		Manifests: []runtime.Manifest{{
			Name: "toy", Kind: runtime.KindExec, Command: []string{python, script, "{port}", "{model}", "{name}"},
			Env: map[string]string{"PATH": os.Getenv("PATH")},
		}},
	}}
	n.client, err = api.NewClient(cfg.Socket, nil)
	require.NoError(t, err)
	t.Cleanup(n.client.Close)
	return n
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	_, _ = os.Stderr.Write(nil)
	w.t.Log(string(b[:len(b)-1]))
	return len(b), nil
}

// start runs an agent; the test ends it, and every engine, if nobody did before.
func (n *node) start() {
	n.t.Helper()
	n.run(n.cfg)
	n.t.Cleanup(func() {
		_ = n.stop()
		end := n.cfg
		end.EndEngines = true
		n.run(end)
		require.NoError(n.t, n.stop())
	})
}

func (n *node) run(cfg Config) {
	n.t.Helper()
	opt := n.opt
	ready := make(chan struct{})
	opt.Ready = func() { close(ready) }
	a, err := New(cfg, opt)
	require.NoError(n.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		require.NoError(n.t, err, "the agent did not start")
	}
	n.agent = a
	require.Eventually(n.t, func() bool { return a.Node().Ready }, 20*time.Second, 5*time.Millisecond, "the zygote does not come up")
	var result error
	stopped := false
	n.stop = func() error {
		if !stopped {
			cancel()
			result, stopped = <-done, true
			n.client.Close()
		}
		return result
	}
}

// place claims and returns the last line.
func (n *node) place(id string, attempt int, r placement.Request) (placement.Progress, error) {
	var last placement.Progress
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := n.client.Place(ctx, id, api.Claim{Attempt: attempt, Request: r, DeadlineSeconds: 20}, func(p placement.Progress) bool {
		last = p
		return true
	})
	return last, err
}

func (n *node) device() placement.Device {
	n.t.Helper()
	s, err := n.client.Node(context.Background())
	require.NoError(n.t, err)
	return s.Capacity.Devices[0]
}

func TestAModelIsPlacedAnswersAndIsReleased(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	last, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Equal(t, placement.EventReady, last.Event, "%+v", last.Error)
	require.Equal(t, placement.TierCold, last.Placement.Tier)
	require.Positive(t, last.Placement.StartSeconds)
	require.Equal(t, 1, n.device().Busy)
	require.NoError(t, device.Probe(context.Background(), last.Placement.Endpoint, "tiny"))

	rc, err := n.client.Logs(context.Background(), "p1", 10, false)
	require.NoError(t, err)
	text, err := io.ReadAll(rc)
	require.NoError(t, err)
	require.Contains(t, string(text), "serving tiny")
	_ = rc.Close()

	_, err = n.client.Sleep(context.Background(), "p1", 0)
	require.Equal(t, placement.CodeUnsupported, placement.AsError(err).Code, "%v", err)
	p, err := n.client.Wake(context.Background(), "p1", "")
	require.NoError(t, err, "it is awake")
	require.Equal(t, placement.Ready, p.State)
	_, err = n.client.Wake(context.Background(), "nothing", "")
	require.Equal(t, placement.CodeNotFound, placement.AsError(err).Code)

	p, err = n.client.Release(context.Background(), "p1", 1)
	require.NoError(t, err)
	require.Equal(t, placement.Released, p.State)
	d := n.device()
	require.Equal(t, 2, d.Free)
	_, err = http.Get(last.Placement.Endpoint)
	require.Error(t, err)
}

func TestAnEngineThatDiesWhileStartingIsReportedWithItsLastWords(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	last, err := n.place("p1", 1, placement.Request{Model: "tiny", Name: "crash"})
	require.NoError(t, err)
	require.Equal(t, placement.EventFailed, last.Event)
	require.Equal(t, placement.CodeStartFailed, last.Error.Code)
	require.Contains(t, last.Error.Detail, "crashes on purpose")
	require.Equal(t, 2, last.Capacity.Devices[0].Free)
}

func TestServingPlacementsOutliveTheAgent(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	last, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.NoError(t, n.stop())
	require.NoError(t, device.Probe(context.Background(), last.Placement.Endpoint, "tiny"), "the engine must not notice")

	n.run(n.cfg)
	d := n.device()
	require.Equal(t, 1, d.Busy)
	require.Equal(t, 1, d.Free)
	p, err := n.client.Placement(context.Background(), "p1")
	require.NoError(t, err)
	require.Equal(t, placement.Ready, p.State)
	require.Equal(t, last.Placement.Endpoint, p.Endpoint)
	again, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Equal(t, placement.EventReady, again.Event)
	p, err = n.client.Release(context.Background(), "p1", 0)
	require.NoError(t, err)
	require.Equal(t, placement.Released, p.State)
}

func TestTwoClaimsForTheLastSlotHaveOneWinner(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *Config) { c.Devices = map[string]DeviceConfig{gpu.CPUDevice: {Slots: 1}} })
	n.start()
	type answer struct {
		last placement.Progress
		err  error
	}
	answers := make(chan answer, 2)
	for _, id := range []string{"a", "b"} {
		go func() {
			last, err := n.place(id, 1, placement.Request{Model: "tiny"})
			answers <- answer{last, err}
		}()
	}
	won, lost := 0, 0
	for range 2 {
		switch got := <-answers; {
		case got.err == nil && got.last.Event == placement.EventReady:
			won++
		default:
			e, ok := errors.AsType[*placement.Error](got.err)
			require.True(t, ok, "%v %+v", got.err, got.last)
			require.Equal(t, placement.CodeNoCapacity, e.Code)
			require.Equal(t, 0, e.Capacity.Devices[0].Free)
			lost++
		}
	}
	require.Equal(t, 1, won)
	require.Equal(t, 1, lost)
}
