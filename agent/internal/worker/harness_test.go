package worker

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/runtime"
)

// host is a run dir that outlives agents: every Runtime of a test works on it,
// and at the end of the test everything on it is shut down.
type host struct {
	t        *testing.T
	dir      string
	manifest runtime.Manifest
	scripts  string
}

// The race detector sleeps a second at every exit of a process; the fakes need not.
const noExitSleep, noExitSleepValue = "GORACE", "atexit_sleep_ms=0"

// fakeHost has a runtime whose zygote is the scripted fake.
func fakeHost(t *testing.T, env ...string) *host {
	h := newHost(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	h.manifest = runtime.Manifest{Name: "fake", Kind: runtime.KindVLLM, Python: exe, Env: map[string]string{"WARMD_FAKE": "zygote", noExitSleep: noExitSleepValue}}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		h.manifest.Env[k] = v
	}
	return h
}

// newHost makes a short folder: t.TempDir's does not fit into a socket path.
func newHost(t *testing.T) *host {
	dir, err := os.MkdirTemp("", "w")
	require.NoError(t, err)
	h := &host{t: t, dir: dir}
	t.Cleanup(func() {
		r := h.new()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		require.NoError(t, r.Shutdown(ctx), "cleanup")
		for i := 0; i < 100 && len(h.leftovers()) > 0; i++ {
			pause(ctx, 10*time.Millisecond) // a half that never got to listen ends by itself
		}
		require.Empty(t, h.leftovers(), "processes that nobody ended")
		if t.Failed() {
			logs, _ := filepath.Glob(dir + "/log/*/*")
			for _, f := range logs {
				t.Logf("%s:\n%s", f, tail(f, 40))
			}
		}
		_ = os.RemoveAll(dir)
	})
	return h
}

func (h *host) new() *Runtime {
	return NewRuntime(RuntimeConfig{
		Manifest: h.manifest, ScriptDir: h.scripts, RunDir: h.dir + "/run", LogDir: h.dir + "/log",
		Launcher: NewExecLauncher(), Log: slog.New(slog.NewTextHandler(testWriter{h.t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
}

// leftovers lists the processes that have the host's folder in their command line
// or environment.
func (h *host) leftovers() (ps []Proc) {
	for pid, s := range readAll() {
		dir := strconv.Itoa(pid)
		cmd, _ := os.ReadFile("/proc/" + dir + "/cmdline")
		env, _ := os.ReadFile("/proc/" + dir + "/environ")
		if pid != os.Getpid() && !s.ended() && bytes.Contains(append(cmd, env...), []byte(h.dir+"/")) {
			ps = append(ps, Proc{pid, s.start})
		}
	}
	return ps
}

// testWriter shows the log of a failed test only.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Helper()
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// agent runs a Runtime until stop is called or the test ends: what an agent is to
// this package.
func (h *host) agent() (r *Runtime, stop func()) {
	r = h.new()
	return r, h.run(r)
}

func (h *host) run(r *Runtime) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(h.t, <-done)
		}
	}
	h.t.Cleanup(stop)
	return stop
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// soon is for what must happen: it ends a test that hangs, and says nothing of speed.
func soon(t *testing.T) context.Context { return within(t, 20*time.Second) }

func (h *host) fork(r *Runtime, id string, env ...string) *Worker {
	h.t.Helper()
	spec := ForkSpec{ID: id, Device: DeviceEnv{Kind: "cpu", ID: "cpu-0"}, Env: map[string]string{}}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		spec.Env[k] = v
	}
	w, err := r.Fork(within(h.t, 20*time.Second), spec)
	require.NoError(h.t, err)
	require.Equal(h.t, Warm, w.Info().State)
	return w
}

// listen opens a socket as the agent does for a placement.
func listen(t *testing.T) (addr string, f *os.File) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	f, err = ln.(*net.TCPListener).File()
	require.NoError(t, err)
	return ln.Addr().String(), f
}

// serve loads a worker and waits until it serves; it returns its endpoint.
func serve(t *testing.T, w *Worker, placement string) string {
	t.Helper()
	addr, f := listen(t)
	defer f.Close()
	require.NoError(t, w.Load(soon(t), LoadSpec{Placement: placement, Attempt: 1, Argv: []string{"--model=m"}, Listener: f}))
	waitState(t, w, Serving)
	return addr
}

// get asks a fake's endpoint for its one line.
func get(t *testing.T, addr string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	require.NoError(t, err)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 200)
	n, err := c.Read(b)
	require.NoError(t, err)
	return string(b[:n])
}

// events reads until one satisfies want; it fails the test at the end of all.
func next(t *testing.T, w *Worker, d time.Duration, want func(Event) bool) Event {
	t.Helper()
	deadline := time.After(d)
	var seen []Event
	for {
		select {
		case e, ok := <-w.Events():
			if !ok {
				require.Fail(t, "events ended", "%+v", seen)
			}
			if want(e) {
				return e
			}
			seen = append(seen, e)
		case <-deadline:
			require.Fail(t, "no such event in time", "%+v", seen)
		}
	}
}

func waitState(t *testing.T, w *Worker, s State) {
	t.Helper()
	if w.Info().State != s {
		next(t, w, 10*time.Second, func(e Event) bool { return e.Kind == EventState && e.Message == string(s) })
	}
}

func waitDead(t *testing.T, w *Worker) Event {
	t.Helper()
	return next(t, w, 20*time.Second, func(e Event) bool { return e.Kind == EventDead })
}

func waitZygote(t *testing.T, r *Runtime, ok func(RuntimeStatus) bool) RuntimeStatus {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := r.waiter()
		if s := r.Status(); ok(s) {
			return s
		}
		select {
		case <-changed:
		case <-deadline:
			require.Fail(t, "zygote", "%+v", r.Status())
		}
	}
}

func isUp(s RuntimeStatus) bool { return s.Zygote == ZygoteUp }

func procsOf(w *Worker) (ps []Proc) {
	for _, p := range w.Record().procs() {
		ps = append(ps, p)
	}
	return ps
}

func requireAlive(t *testing.T, ps ...Proc) {
	t.Helper()
	for _, p := range ps {
		require.True(t, p.Alive(), "process %v", p)
	}
}

func requireGone(t *testing.T, ps ...Proc) {
	t.Helper()
	for _, p := range ps {
		require.False(t, p.Alive(), "process %v", p)
	}
}

// stopProcess stops a process, and returns when none of its threads runs any more.
func stopProcess(t *testing.T, p Proc) {
	t.Helper()
	require.NoError(t, p.Signal(syscall.SIGSTOP))
	require.Eventually(t, func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID))
		for _, thread := range threads {
			raw, _ := os.ReadFile(thread)
			if s, ok := parseStat(raw); ok && s.state != 'T' {
				return false
			}
		}
		return len(threads) > 0
	}, 5*time.Second, time.Millisecond)
}
