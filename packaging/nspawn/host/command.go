package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runTime bounds a command that a test waits for.
const runTime = 2 * time.Minute

// Command is a command on the host, as root, in all of its namespaces and in a
// cgroup of the host, so that it is paused and killed with it. Its environment is
// that of a login, not that of the test. On a host without power it fails.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	h.mu.Lock()
	defer h.mu.Unlock()
	// The shell moves itself before it becomes nsenter. To be born in the cgroup would
	// not do: on a paused host the child would freeze half born, and its parent with it.
	argv := []string{"-c", `echo 0 >"$0" && exec "$@"`, filepath.Join(h.shell(), "cgroup.procs"),
		"nsenter", "--target", strconv.Itoa(h.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--",
		"/usr/bin/env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", name}
	cmd := exec.CommandContext(ctx, "sh", append(argv, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// nsenter forks to get into the pid namespace: kill both.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// Try runs a shell script on the host and returns what it printed, spaces at the end cut.
func (h *Host) Try(ctx context.Context, script string) (string, error) {
	return output(h.Command(ctx, "bash", "-c", script), h.Name+": "+script)
}

// TryAs is Try for a user of the host, with that user's groups.
func (h *Host) TryAs(ctx context.Context, user, script string) (string, error) {
	return output(h.Command(ctx, "runuser", "-u", user, "--", "bash", "-c", script), h.Name+": as "+user+": "+script)
}

// Run is Try that must succeed.
func (h *Host) Run(t testing.TB, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runTime) // cleanups run commands, too
	defer cancel()
	out, err := h.Try(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// RunAs is TryAs that must succeed.
func (h *Host) RunAs(t testing.TB, user, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runTime)
	defer cancel()
	out, err := h.TryAs(ctx, user, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func output(cmd *exec.Cmd, what string) (string, error) {
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s%s", what, err, tail(out.String(), 2000), tail(errOut.String(), 2000))
	}
	return strings.TrimRight(out.String(), " \n"), err
}

// Write writes a file on the host and makes its folder.
func (h *Host) Write(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	h.put(t, strings.NewReader(content), path, mode)
}

// Copy copies a file of the machine to the host.
func (h *Host) Copy(t testing.TB, from, to string, mode os.FileMode) {
	t.Helper()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h.put(t, f, to, mode)
}

func (h *Host) put(t testing.TB, content interface{ Read([]byte) (int, error) }, path string, mode os.FileMode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runTime)
	defer cancel()
	cmd := h.Command(ctx, "install", "-D", "-m", strconv.FormatInt(int64(mode), 8), "/dev/stdin", path)
	cmd.Stdin = content
	if _, err := output(cmd, h.Name+": write "+path); err != nil {
		t.Fatal(err)
	}
}

// Install installs packages, as an operator does who copied them there.
func (h *Host) Install(t testing.TB, debs ...string) {
	t.Helper()
	var paths []string
	for _, d := range debs {
		to := "/var/tmp/" + filepath.Base(d)
		h.Copy(t, d, to, 0o644)
		paths = append(paths, to)
	}
	h.Run(t, "DEBIAN_FRONTEND=noninteractive dpkg -i "+strings.Join(paths, " ")+" && rm "+strings.Join(paths, " "))
}
