package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var quiet = slog.New(slog.DiscardHandler)

// manager is the other end of the notify socket.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T, name string) *manager {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return &manager{t, conn}
}

func (m *manager) next() string {
	m.t.Helper()
	b := make([]byte, 4096)
	require.NoError(m.t, m.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	n, err := m.conn.Read(b)
	require.NoError(m.t, err)
	return string(b[:n])
}

// quietFor is true when nothing comes in that time.
func (m *manager) quietFor(d time.Duration) bool {
	require.NoError(m.t, m.conn.SetReadDeadline(time.Now().Add(d)))
	_, err := m.conn.Read(make([]byte, 10))
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func TestEachWordReachesSystemd(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@warmd-test-%d", os.Getpid())} {
		m := newManager(t, name)
		n := NewNotifier(quiet)
		assert.True(t, n.Enabled())
		assert.Empty(t, os.Getenv("NOTIFY_SOCKET"), "children must not speak in our name")
		n.Ready("2 devices")
		assert.Equal(t, "READY=1\nSTATUS=2 devices", m.next())
		n.Status("%d warm\nREADY=1", 3)
		assert.Equal(t, "STATUS=3 warm READY=1", m.next(), "a status is one line, and no other word")
		n.Reloading()
		assert.Regexp(t, regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*$`), m.next())
		n.Ready("")
		assert.Equal(t, "READY=1", m.next())
		n.Extend(90 * time.Second)
		assert.Equal(t, "EXTEND_TIMEOUT_USEC=90000000", m.next())
		n.Stopping("")
		assert.Equal(t, "STOPPING=1", m.next())
	}
}

func TestNotifierIsANoOpWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "1000")
	n := NewNotifier(quiet)
	assert.False(t, n.Enabled())
	n.Ready("x")
	n.Reloading()
	n.Stopping("")
	require.NoError(t, n.Watchdog(t.Context(), func() error { panic("nobody watches") }))
}

func TestSystemdThatIsGoneIsLoggedNotFatal(t *testing.T) {
	var log bytes.Buffer
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	NewNotifier(slog.New(slog.NewTextHandler(&log, nil))).Ready("")
	assert.Contains(t, log.String(), "notify systemd")
}

func TestWatchdogIsPettedOnlyWhileAlive(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "60000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	n := NewNotifier(quiet)
	_, left := os.LookupEnv("WATCHDOG_USEC")
	assert.False(t, left, "no child pets our watchdog")

	var sick atomic.Pointer[error]
	n.Status("2 warm")
	assert.Equal(t, "STATUS=2 warm", m.next())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- n.Watchdog(ctx, func() error {
			if e := sick.Load(); e != nil {
				return *e
			}
			return nil
		})
	}()
	for range 3 {
		assert.Equal(t, "WATCHDOG=1", m.next())
	}
	err := errors.New("the loop of cpu-0 hangs")
	sick.Store(&err)
	for msg := m.next(); msg != "STATUS=unwell: the loop of cpu-0 hangs"; msg = m.next() {
		require.Equal(t, "WATCHDOG=1", msg)
	}
	assert.True(t, m.quietFor(100*time.Millisecond), "no petting while unwell, and told once")
	sick.Store(nil)
	assert.Equal(t, "WATCHDOG=1", m.next())
	assert.Equal(t, "STATUS=2 warm", m.next(), "the line is there again that was there before")
	assert.Equal(t, "WATCHDOG=1", m.next())
	cancel()
	assert.NoError(t, <-done)
}

func TestWatchdogOfAnotherProcessIsNotOurs(t *testing.T) {
	newManager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "1000")
	t.Setenv("WATCHDOG_PID", "1")
	require.NoError(t, NewNotifier(quiet).Watchdog(t.Context(), func() error { panic("not ours") }))

	var log bytes.Buffer
	t.Setenv("WATCHDOG_USEC", "soon")
	NewNotifier(slog.New(slog.NewTextHandler(&log, nil)))
	assert.True(t, strings.Contains(log.String(), "no watchdog"), log.String())
}
