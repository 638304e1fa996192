package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLeaksAreNamedAndGrowthHasALimit(t *testing.T) {
	f := Footprint{Processes: 4, AgentFDs: 20, ZygoteFDs: 7, AgentRSS: 100 << 20, ZygoteRSS: 600 << 20, Shared: []string{"a"}, Sockets: []string{"x", "y"}}
	assert.Empty(t, leaks(f, f))
	more := f
	more.AgentRSS, more.ZygoteRSS, more.Processes = 104<<20, 590<<20, 3
	assert.Empty(t, leaks(f, more), "below the limit, and less, is no leak")
	more.AgentRSS = 106 << 20
	more.Processes, more.AgentFDs, more.Shared, more.Sockets, more.quarantined = 5, 22, []string{"a", "b"}, []string{"x", "y", "z"}, 1
	assert.Equal(t, []string{
		"1 more processes than before", "2 more open files in the agent than before", "1 more shared memory segments than before", "1 more socket files than before",
		"1 more slots in quarantine than before", "resident memory of the agent grew by 6.0 %",
	}, leaks(f, more))
}

// child starts cat; it lives until its input is closed.
func child(t *testing.T, own bool) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: own}
	require.NoError(t, cmd.Start())
	done := false
	end = func() {
		if !done {
			_ = in.Close()
			_ = cmd.Wait()
		}
		done = true
	}
	t.Cleanup(end)
	return cmd.Process.Pid, end
}

func TestProcessesAreCountedByDescentAndBySession(t *testing.T) {
	w := &watch{sessions: map[int]bool{}}
	pid, end := child(t, true)
	assert.Equal(t, 1, w.count([]int{pid}), "a root counts")
	assert.Equal(t, 0, w.count([]int{1 << 30}))
	w.sessions[pid] = true
	assert.Equal(t, 1, w.count(nil), "one that lost its parents keeps its session")
	end()
	assert.Equal(t, 0, w.count([]int{pid}))

	self, ok := readProcess(os.Getpid())
	require.True(t, ok)
	other, _ := child(t, false)
	p, ok := readProcess(other)
	require.True(t, ok)
	assert.Equal(t, os.Getpid(), p.parent)
	assert.Equal(t, self.session, p.session)
}

func TestWhatAProcessHoldsIsRead(t *testing.T) {
	before := fds(os.Getpid())
	f, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer f.Close()
	assert.Equal(t, before+1, fds(os.Getpid()))
	assert.Greater(t, resident(os.Getpid()), int64(1<<20))
	assert.Equal(t, uint32(os.Geteuid()), owner(os.Getpid()))

	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "rt/v.1"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "rt/v.1/file"), nil, 0o600))
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	t.Chdir(dir) // a socket's path holds 107 bytes
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: "rt/v.1/zygote.sock"}))
	assert.Equal(t, []string{"rt/v.1/zygote.sock"}, sockets(dir))
	me := uint32(os.Getuid())
	assert.Empty(t, temporary(dir, me), "none of it is where engines leave theirs")
	assert.Equal(t, []string{"v.1/zygote.sock"}, temporary(filepath.Join(dir, "rt/v.1"), me))
	assert.Empty(t, temporary(filepath.Join(dir, "rt/v.1"), me+1), "another user's")
}
