package worker

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// runaway starts a grandchild that nothing but the cgroup leads to: it has a session
// of its own, and its parent is gone.
const runaway = `
import os, subprocess, sys, signal
middle = "import subprocess, sys; print('pid', subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, flush=True)"
subprocess.run([sys.executable, "-c", middle])
print("ready", flush=True)
signal.pause()
`

// delegated starts zygotes as a unit with Delegate= does: in a cgroup that is theirs.
type delegated struct {
	*ExecLauncher
	group string
}

func (d delegated) Start(ctx context.Context, u Unit) error {
	join := []string{"/bin/sh", "-c", `echo 0 > "$0"/cgroup.procs && exec "$@"`, d.group}
	u.Argv = append(append(join, u.Argv...), "--cgroups")
	return d.ExecLauncher.Start(ctx, u)
}

// cgroupHost needs root and cgroup v2, as the tests of the units do.
func cgroupHost(t *testing.T) (*host, func() *Runtime) {
	group, err := os.MkdirTemp(cgroupMount(), "warmd-test-")
	if err != nil && testing.Short() {
		t.Skipf("needs root and cgroup v2: %v", err)
	}
	require.NoError(t, err)
	t.Cleanup(func() {
		require.Empty(t, cgroupMembers(group))
		entries, err := os.ReadDir(group)
		require.NoError(t, err)
		for _, e := range entries {
			if e.IsDir() {
				require.NoError(t, os.Remove(filepath.Join(group, e.Name())))
			}
		}
		require.NoError(t, os.Remove(group))
	})
	h := execHost(t)
	return h, func() *Runtime {
		r := h.new()
		r.cfg.Launcher = delegated{NewExecLauncher(), group}
		return r
	}
}

func startRunaway(t *testing.T, h *host, r *Runtime) (w *Worker, grandchild Proc) {
	t.Helper()
	w, err := r.Spawn(within(t, 20*time.Second), SpawnSpec{ID: "w1", Argv: []string{h.manifest.Python, "-c", runaway}, Env: h.manifest.Environ(), Placement: "p1", Attempt: 1})
	require.NoError(t, err)
	_, said, ok := strings.Cut(waitLog(t, w, "ready"), "pid ")
	require.True(t, ok)
	pid, err := strconv.Atoi(strings.Fields(said)[0])
	require.NoError(t, err)
	grandchild, ok = FindProc(pid)
	require.True(t, ok)
	require.NotContains(t, sessionMembers(w.Record().Engine), grandchild, "no session and no parent leads to it")
	return w, grandchild
}

func TestReleaseFindsAGrandchildThatMadeItselfIndependent(t *testing.T) {
	h, agent := cgroupHost(t)
	r := agent()
	h.run(r)
	w, grandchild := startRunaway(t, h, r)
	require.Equal(t, "worker-w1", filepath.Base(w.Record().CGroup))
	zygote, _ := FindProc(waitZygote(t, r, isUp).PID)
	stopProcess(t, zygote) // it is not the zygote that ends it
	defer func() { _ = zygote.Signal(syscall.SIGKILL) }()
	require.NoError(t, w.Stop(within(t, 20*time.Second), 0))
	requireGone(t, grandchild)
}

func TestZygoteEndsWhatADeadWorkerLeftWithNoAgentThere(t *testing.T) {
	h, agent := cgroupHost(t)
	r := agent()
	stop := h.run(r)
	w, grandchild := startRunaway(t, h, r)
	rec := w.Record()
	stop()
	require.NoError(t, rec.Engine.Signal(syscall.SIGKILL))
	require.True(t, awaitAll(soon(t), []Proc{grandchild}, 10*time.Second))
	requireGone(t, grandchild)
}

func TestNextAgentEndsWhatADeadWorkerAndADeadZygoteLeft(t *testing.T) {
	h, agent := cgroupHost(t)
	r := agent()
	stop := h.run(r)
	w, grandchild := startRunaway(t, h, r)
	rec := w.Record()
	zygote, _ := FindProc(waitZygote(t, r, isUp).PID)
	stop()
	for _, p := range []Proc{zygote, rec.Engine} {
		require.NoError(t, p.Signal(syscall.SIGKILL))
		require.True(t, awaitAll(soon(t), []Proc{p}, 10*time.Second))
	}
	requireAlive(t, grandchild)
	h.run(agent())
	require.True(t, awaitAll(soon(t), []Proc{grandchild}, 10*time.Second))
	requireGone(t, grandchild)
}
