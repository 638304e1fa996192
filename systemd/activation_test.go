package systemd

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// TestMain is also the service that systemd starts: a child with sockets from fd 3
// on. It cannot be this process, whose descriptors are the test's.
func TestMain(m *testing.M) {
	if os.Getenv("SYSTEMD_TEST_CHILD") != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// got is what the child says.
type got struct {
	Names  []string
	Nil    bool
	Error  string
	Again  string
	Env    []string // LISTEN_* that are left
	OpenFD []string // of the descriptors that were passed
}

func child() int {
	if os.Getenv("LISTEN_FDS") != "" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())) // systemd knows it between fork and exec
	}
	ls, err := Listeners([]string{"agent", "fleet"}, "extra")
	g := got{Nil: ls == nil}
	for name, l := range ls {
		g.Names = append(g.Names, fmt.Sprintf("%s %d", name, len(l)))
	}
	sort.Strings(g.Names)
	if err != nil {
		g.Error = err.Error()
	}
	_, err = Listeners(nil)
	g.Again = fmt.Sprint(err)
	for _, kv := range os.Environ() {
		if len(kv) > 7 && kv[:7] == "LISTEN_" {
			g.Env = append(g.Env, kv)
		}
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); len(to) > 7 && to[:7] == "socket:" {
			g.OpenFD = append(g.OpenFD, fd.Name())
		}
	}
	json.NewEncoder(os.Stdout).Encode(g)
	if l := ls["agent"]; len(l) > 0 { // serve one connection
		c, err := l[0].Accept()
		if err != nil {
			return 1
		}
		fmt.Fprintln(c, "hello")
		c.Close()
	}
	return 0
}

// start runs the child with files as fds 3..., and returns what it says.
func start(t *testing.T, names string, files ...*os.File) (*exec.Cmd, got) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SYSTEMD_TEST_CHILD=1")
	if len(files) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+names)
	}
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	var g got
	require.NoError(t, json.NewDecoder(out).Decode(&g))
	return cmd, g
}

func unixSocket(t *testing.T) (*os.File, string) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	f, err := l.(*net.UnixListener).File()
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f, path
}

func tcpSocket(t *testing.T) *os.File {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestActivatedSocketsComeByNameAndServe(t *testing.T) {
	sock, path := unixSocket(t)
	_, g := start(t, "agent:fleet:fleet", sock, tcpSocket(t), tcpSocket(t))
	assert.Empty(t, g.Error)
	assert.Equal(t, []string{"agent 1", "fleet 2"}, g.Names, "two sockets of one unit have one name")
	assert.Contains(t, g.Again, "taken before")
	assert.Empty(t, g.Env, "no child of the service inherits the variables")
	assert.Len(t, g.OpenFD, 3)
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	b := make([]byte, 5)
	_, err = c.Read(b)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(b))
}

func TestMissingAndUnknownSocketsAreNamedAndClosed(t *testing.T) {
	sock, _ := unixSocket(t)
	pipe, w, err := os.Pipe()
	require.NoError(t, err)
	defer pipe.Close()
	defer w.Close()
	_, g := start(t, "agent:wrong:stored:", sock, tcpSocket(t), pipe, tcpSocket(t))
	assert.Equal(t, "socket activation: no socket named fleet (is its .socket unit enabled, and its FileDescriptorName= right?); "+
		"unexpected fd 4 (wrong), fd 5 (stored), not a listening stream socket, fd 6 (LISTEN_FD_6) (closed)", g.Error)
	assert.True(t, g.Nil)
	assert.Empty(t, g.OpenFD, "a descriptor that nobody serves would swallow connections")
}

func TestProcessWithoutActivationOpensItsOwn(t *testing.T) {
	_, g := start(t, "")
	assert.True(t, g.Nil)
	assert.Empty(t, g.Error)
}

func TestOptionalSocketMayBeThereOrNot(t *testing.T) {
	a, _ := unixSocket(t)
	_, g := start(t, "agent:fleet:extra", a, tcpSocket(t), tcpSocket(t))
	assert.Equal(t, []string{"agent 1", "extra 1", "fleet 1"}, g.Names)
}

func TestScrubKeepsWhatIsNotSystemds(t *testing.T) {
	in := []string{
		"PATH=/bin", "NOTIFY_SOCKET=/run/x", "WATCHDOG_USEC=1", "WATCHDOG_PID=2", "LISTEN_FDS=1", "LISTEN_PID=2", "LISTEN_FDNAMES=a",
		"CREDENTIALS_DIRECTORY=/run/c", "INVOCATION_ID=x", "JOURNAL_STREAM=1:2", "SYSTEMD_EXEC_PID=4", "MEMORY_PRESSURE_WATCH=/x",
		"STATE_DIRECTORY=/var", "EMPTY=", "LISTENER=keep", "=C:", "junk", "A=b=c", "HOME=/root",
	}
	before := fmt.Sprint(in)
	assert.Equal(t, []string{"PATH=/bin", "EMPTY=", "LISTENER=keep", "A=b=c", "HOME=/root"}, Scrub(in))
	assert.Equal(t, before, fmt.Sprint(in))
	assert.Empty(t, Scrub(nil))
}

func TestScrubSelfCleansThisProcess(t *testing.T) {
	t.Setenv("INVOCATION_ID", "x")
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("KEEP_ME", "1")
	ScrubSelf()
	assert.Empty(t, os.Getenv("INVOCATION_ID"))
	_, ok := os.LookupEnv("LISTEN_FDS")
	assert.False(t, ok)
	assert.Equal(t, "1", os.Getenv("KEEP_ME"))
}
