package worker

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/stretchr/testify/require"
)

// fakeBus answers as systemd does; the real one is tried on booted hosts
// (packaging/nspawn).
type fakeBus struct {
	mu      sync.Mutex
	calls   []string
	refuse  error             // what a call answers
	results map[string]string // of jobs, by unit; default done, "-" never
	props   map[string]any
	down    bool
	closed  bool
}

func (b *fakeBus) job(what, name string, done chan<- string) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, what+" "+name)
	if b.down {
		return 0, godbus.ErrClosed
	}
	if b.refuse != nil {
		return 0, b.refuse
	}
	r := b.results[name]
	if r == "" {
		r = "done"
	}
	if r != "-" {
		done <- r
	}
	return 1, nil
}

func (b *fakeBus) StartUnitContext(_ context.Context, name, mode string, done chan<- string) (int, error) {
	return b.job("start "+mode, name, done)
}

func (b *fakeBus) StopUnitContext(_ context.Context, name, mode string, done chan<- string) (int, error) {
	return b.job("stop "+mode, name, done)
}

func (b *fakeBus) GetAllPropertiesContext(context.Context, string) (map[string]any, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return nil, godbus.ErrClosed
	}
	return b.props, nil
}

func (b *fakeBus) Connected() bool { b.mu.Lock(); defer b.mu.Unlock(); return !b.down && !b.closed }
func (b *fakeBus) Close()          { b.mu.Lock(); defer b.mu.Unlock(); b.closed = true }

func busLauncher(t *testing.T, buses ...*fakeBus) (*SystemdLauncher, Unit) {
	l := NewSystemdLauncher(slog.New(slog.DiscardHandler))
	l.open = func(context.Context) (bus, error) {
		if len(buses) == 0 {
			return nil, os.ErrNotExist
		}
		b := buses[0]
		buses = buses[1:]
		return b, nil
	}
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	dir := filepath.Join(t.TempDir(), "vllm-0.32.0.3")
	require.NoError(t, os.Mkdir(dir, 0o755))
	return l, Unit{Runtime: "vllm-0.32.0", Generation: 3, Argv: []string{"/v/python", "/s/zygote.py"}, Env: []string{"A=b"}, Dir: dir, Log: "/l", Socket: dir + "/zygote.sock"}
}

const busUnit = "warmd-runtime@vllm-0.32.0.3.service"

func TestUnitIsWrittenDownAndStarted(t *testing.T) {
	b := &fakeBus{}
	l, u := busLauncher(t, b)
	require.NoError(t, l.Start(t.Context(), u))
	require.Equal(t, []string{"start fail " + busUnit}, b.calls)
	got, err := LoadUnit(u.Dir)
	require.NoError(t, err)
	require.Equal(t, []string{"/v/python", "/s/zygote.py", "--cgroups"}, got.Argv, "under systemd the cgroup is the zygote's to divide")
	require.Equal(t, u.Env, got.Env)
	require.Len(t, u.Argv, 2)

	require.NoError(t, l.Stop(t.Context(), u))
	b.refuse = godbus.Error{Name: "org.freedesktop.systemd1.NoSuchUnit"}
	require.NoError(t, l.Stop(t.Context(), u), "a unit that does not run is stopped")
}

func TestUnitOfAnotherInstanceIsNotRead(t *testing.T) {
	_, u := busLauncher(t)
	require.NoError(t, u.save())
	other := filepath.Join(filepath.Dir(u.Dir), "vllm-0.32.0.4")
	require.NoError(t, os.Rename(u.Dir, other))
	_, err := LoadUnit(other)
	require.ErrorContains(t, err, "is not that of vllm-0.32.0.4")
}

func TestLostBusIsOpenedAgain(t *testing.T) {
	first, second := &fakeBus{}, &fakeBus{}
	l, u := busLauncher(t, first, second)
	require.NoError(t, l.Start(t.Context(), u))
	first.mu.Lock()
	first.down = true
	first.mu.Unlock()
	require.NoError(t, l.Start(t.Context(), u))
	require.Len(t, second.calls, 1)
	require.True(t, first.closed)
	second.mu.Lock()
	second.down = true
	second.mu.Unlock()
	err := l.Start(t.Context(), u)
	require.ErrorContains(t, err, "D-Bus does not run: systemctl start dbus.socket")
}

func TestWhatTheBusRefusesSaysWhatToDo(t *testing.T) {
	for name, want := range map[string]string{
		"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": "is polkitd installed",
		"org.freedesktop.systemd1.NoSuchUnit":                         "warmd-runtime@.service is not installed",
	} {
		l, u := busLauncher(t, &fakeBus{refuse: godbus.Error{Name: name, Body: []any{"no"}}})
		err := l.Start(t.Context(), u)
		require.ErrorContains(t, err, "start "+busUnit)
		require.ErrorContains(t, err, want)
	}
}

func TestJobThatNeverEndsIsGivenUp(t *testing.T) {
	l, u := busLauncher(t, &fakeBus{results: map[string]string{busUnit: "-"}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := l.Start(ctx, u)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestEndOfAUnitIsToldInWords(t *testing.T) {
	for want, e := range map[string]UnitEnd{
		"exited with code 71":                                             {Result: "exit-code", Code: "exited", Status: "71"},
		"killed by signal 9":                                              {Result: "signal", Code: "killed", Status: "9"},
		"was killed by the kernel: out of memory":                         {Result: "oom-kill", Code: "killed", Status: "9"},
		"did not start: user warmd-engine is missing: systemd-sysusers":   {Result: "exit-code", Code: "exited", Status: "217"},
		"ended (resources)":                                               {Result: "resources"},
		"did not start: cannot run /usr/bin/warmd: is the package whole?": {Result: "exit-code", Code: "exited", Status: "203"},
	} {
		b := &fakeBus{results: map[string]string{busUnit: "failed"}}
		l, u := busLauncher(t, b)
		require.NoError(t, e.Save(u.Dir))
		cause, ended := l.Exited(u)
		require.True(t, ended)
		require.Equal(t, want, cause)
		err := l.Start(t.Context(), u)
		require.ErrorContains(t, err, want+" (journalctl -u "+busUnit)
	}
}

// While workers live the unit is active, and what became of its first process is
// known to systemd only.
func TestEndOfAZygoteWhoseWorkersLiveIsAskedFor(t *testing.T) {
	active := map[string]any{"ActiveState": "active", "Result": "success", "ExecMainCode": int32(0), "ExecMainStatus": int32(0)}
	b := &fakeBus{props: active}
	l, u := busLauncher(t, b)
	_, ended := l.Exited(u)
	require.False(t, ended)
	b.mu.Lock()
	b.props = map[string]any{"ActiveState": "active", "Result": "signal", "ExecMainCode": int32(2), "ExecMainStatus": int32(9)}
	b.mu.Unlock()
	_, ended = l.Exited(u)
	require.False(t, ended, "not asked again at once: it is asked for in a loop")
	require.Eventually(t, func() bool {
		cause, ended := l.Exited(u)
		return ended && cause == "killed by signal 9"
	}, 2*time.Second, 10*time.Millisecond)

	l, u = busLauncher(t, &fakeBus{props: map[string]any{"ActiveState": "inactive", "Result": "success"}})
	_, ended = l.Exited(u)
	require.True(t, ended, "forgotten by systemd: it ran before")
	l, u = busLauncher(t)
	_, ended = l.Exited(u)
	require.False(t, ended, "nobody knows while the bus is away")
	require.False(t, errors.Is(l.Start(t.Context(), u), context.DeadlineExceeded))
}
