package nspawn

import (
	"bufio"
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

	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
)

func TestLeftoversOfAKilledRunAreSwept(t *testing.T) {
	t.Run("by the janitor", func(t *testing.T) {
		run := startRun(t)
		require.NoError(t, run.Process.Kill())
		untilSwept(t, run)
	})
	t.Run("by the next run, when the janitor was killed, too", func(t *testing.T) {
		run := startRun(t)
		require.NoError(t, syscall.Kill(janitorOf(t, run), syscall.SIGKILL))
		require.NoError(t, run.Process.Kill())
		_ = run.Wait()
		require.NotEmpty(t, leftovers(run))
		require.NoError(t, host.SweepDead())
		untilSwept(t, run)
	})
}

// playRun makes the test binary a run of its own that ends only when it is killed.
const playRun = "run-until-killed"

func runUntilKilled() {
	l, err := host.Open(context.Background(), cacheDir())
	if err == nil {
		_, err = l.Boot(context.Background(), "victim", host.Spec{})
	}
	fmt.Println("booted:", err)
	select {}
}

func startRun(t *testing.T) *exec.Cmd {
	t.Helper()
	run := exec.Command("/proc/self/exe", playRun)
	out, err := run.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, run.Start())
	t.Cleanup(func() { _ = run.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "booted: <nil>\n", line)
	require.NotEmpty(t, leftovers(run))
	return run
}

// janitorOf finds the child that waits to sweep a run.
func janitorOf(t *testing.T, run *exec.Cmd) int {
	t.Helper()
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", run.Process.Pid))
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for child := range strings.FieldsSeq(string(b)) {
			if line, _ := os.ReadFile("/proc/" + child + "/cmdline"); strings.Contains(string(line), "sweep-hosts") {
				pid, _ := strconv.Atoi(child)
				return pid
			}
		}
	}
	t.Fatal("the run has no janitor")
	return 0
}

func untilSwept(t *testing.T, run *exec.Cmd) {
	t.Helper()
	took := host.Until(t, 30*time.Second, "nothing is left", func() error {
		if left := leftovers(run); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	t.Logf("swept within %s", took)
}

// leftovers lists the traces of a run on this machine. Everything that a run makes
// carries its id.
func leftovers(run *exec.Cmd) (left []string) {
	id := fmt.Sprintf("wt%d", run.Process.Pid)
	for _, pattern := range []string{
		"/run/warmd-hosts/" + id, "/run/netns/" + id + "-*", cacheDir() + "/hosts/" + id, "/run/systemd/nspawn/propagate/" + id + "-*",
		"/sys/fs/cgroup/warmd-hosts/" + id, "/sys/fs/cgroup/unified/warmd-hosts/" + id,
	} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/"+id+"/") || strings.Contains(line, "/"+id+"-") {
			left = append(left, line)
		}
	}
	cgroups, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range cgroups {
		if b, _ := os.ReadFile(path); strings.Contains(string(b), "/warmd-hosts/"+id) {
			left = append(left, path)
		}
	}
	return left
}
