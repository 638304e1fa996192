package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// SystemdLauncher starts zygotes as units warmd-runtime@NAME.GENERATION.service, of
// another user than the agent's. What they run is written beside their sockets; the
// unit file decides what they may do. A polkit rule lets the agent start and stop
// exactly these.
type SystemdLauncher struct {
	log  *slog.Logger
	open func(context.Context) (bus, error)

	mu    sync.Mutex
	conn  bus // nil: to be opened
	looks map[string]look
}

// bus is what we need of systemd's D-Bus interface.
type bus interface {
	StartUnitContext(ctx context.Context, name, mode string, done chan<- string) (int, error)
	StopUnitContext(ctx context.Context, name, mode string, done chan<- string) (int, error)
	GetAllPropertiesContext(ctx context.Context, unit string) (map[string]any, error)
	Connected() bool
	Close()
}

// look is what we saw of a unit last.
type look struct {
	at    time.Time
	cause string
	ended bool
}

var (
	_ Launcher     = (*SystemdLauncher)(nil)
	_ exitReporter = (*SystemdLauncher)(nil)
)

// NewSystemdLauncher connects when it is first used.
func NewSystemdLauncher(log *slog.Logger) *SystemdLauncher {
	return &SystemdLauncher{log: log, looks: map[string]look{}, open: func(ctx context.Context) (bus, error) {
		return dbus.NewSystemConnectionContext(ctx)
	}}
}

// Close hangs up.
func (l *SystemdLauncher) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
	return nil
}

func unitName(u Unit) string { return "warmd-runtime@" + u.Instance() + ".service" }

// Bounds of what systemd is asked for.
const (
	jobTime  = 30 * time.Second
	lookTime = 2 * time.Second
	lookStep = 100 * time.Millisecond // between two looks at one unit
)

// Start returns when the unit's program runs.
func (l *SystemdLauncher) Start(ctx context.Context, u Unit) error {
	fail := func(err error) error {
		return fmt.Errorf("start %s: %w", unitName(u), err)
	}
	// The zygote divides its own cgroup, which is its own under systemd only.
	u.Argv = append(slices.Clip(u.Argv), "--cgroups")
	if err := u.save(); err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithTimeout(ctx, jobTime)
	defer cancel()
	result, err := l.job(ctx, func(b bus, done chan<- string) (int, error) {
		return b.StartUnitContext(ctx, unitName(u), "fail", done)
	})
	switch {
	case err != nil:
		return fail(explainBus(err))
	case result == "done":
		return nil
	}
	cause, ended := l.Exited(u)
	if !ended {
		cause = "systemd says: " + result
	}
	return fail(fmt.Errorf("%s (journalctl -u %s says more)", cause, unitName(u)))
}

// Stop ends the unit, with all of its workers. It is for the end of everything: a
// single zygote is ended by its socket, or by another zygote.
func (l *SystemdLauncher) Stop(ctx context.Context, u Unit) error {
	result, err := l.job(ctx, func(b bus, done chan<- string) (int, error) {
		return b.StopUnitContext(ctx, unitName(u), "replace", done)
	})
	var gone godbus.Error
	if errors.As(err, &gone) && gone.Name == "org.freedesktop.systemd1.NoSuchUnit" {
		return nil
	}
	if err == nil && result != "done" {
		err = fmt.Errorf("systemd says: %s", result)
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", unitName(u), explainBus(err))
	}
	return nil
}

// Exited looks for what the unit left behind at its end, and, while workers keep it
// active, at what became of its first process.
func (l *SystemdLauncher) Exited(u Unit) (string, bool) {
	if e, ok := loadEnd(filepath.Dir(u.Socket)); ok {
		return e.words(), true
	}
	l.mu.Lock()
	last, looked := l.looks[u.Socket]
	l.mu.Unlock()
	if looked && (last.ended || time.Since(last.at) < lookStep) {
		return last.cause, last.ended
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	now := look{at: time.Now()}
	if b, err := l.connect(ctx); err == nil {
		if p, err := b.GetAllPropertiesContext(ctx, unitName(u)); err == nil {
			now.cause, now.ended = mainEnd(p)
		} else {
			l.hangUp(b)
		}
	}
	if e, ok := loadEnd(filepath.Dir(u.Socket)); ok { // it may have come meanwhile, and says more
		return e.words(), true
	}
	l.mu.Lock()
	if len(l.looks) > 64 { // of generations that are long gone
		clear(l.looks)
	}
	l.looks[u.Socket] = now
	l.mu.Unlock()
	return now.cause, now.ended
}

// mainEnd reads how the first process of a unit ended from the unit's properties.
func mainEnd(p map[string]any) (string, bool) {
	code, _ := p["ExecMainCode"].(int32)
	status, _ := p["ExecMainStatus"].(int32)
	result, _ := p["Result"].(string)
	e := UnitEnd{Result: result, Status: strconv.Itoa(int(status))}
	switch code {
	case 1: // CLD_EXITED
		e.Code = "exited"
	case 2, 3: // CLD_KILLED, CLD_DUMPED
		e.Code = "killed"
	default:
		state, _ := p["ActiveState"].(string)
		return e.words(), state == "inactive" || state == "failed"
	}
	return e.words(), true
}

// job asks for something and waits until systemd has done it.
func (l *SystemdLauncher) job(ctx context.Context, ask func(bus, chan<- string) (int, error)) (string, error) {
	for try := 0; ; try++ {
		b, err := l.connect(ctx)
		if err != nil {
			return "", err
		}
		done := make(chan string, 1)
		if _, err = ask(b, done); err != nil {
			if !lostBus(b, err) {
				return "", err
			}
			l.hangUp(b) // D-Bus was restarted: its connections are gone, what we ask for is harmless twice
			if try == 0 {
				continue
			}
			return "", err
		}
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case result := <-done:
				return result, nil
			case <-tick.C:
				if !b.Connected() {
					l.hangUp(b)
					return "", errors.New("the connection to D-Bus was lost while systemd worked on it")
				}
			case <-ctx.Done():
				return "", fmt.Errorf("systemd is not done: %w", ctx.Err())
			}
		}
	}
}

func lostBus(b bus, err error) bool {
	return !b.Connected() || errors.Is(err, godbus.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

func (l *SystemdLauncher) connect(ctx context.Context) (bus, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil && l.conn.Connected() {
		return l.conn, nil
	}
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
		l.log.Info("the connection to D-Bus was lost, connecting again")
	}
	type opened struct {
		bus bus
		err error
	}
	ch := make(chan opened, 1)
	go func() { // a bus that is stuck does not answer; ctx of ours would end the connection later
		b, err := l.open(context.WithoutCancel(ctx))
		ch <- opened{b, err}
	}()
	select {
	case o := <-ch:
		if o.err != nil {
			return nil, fmt.Errorf("connect to D-Bus: %w", o.err)
		}
		l.conn = o.bus
		return o.bus, nil
	case <-ctx.Done():
		go func() {
			if o := <-ch; o.err == nil {
				o.bus.Close()
			}
		}()
		return nil, fmt.Errorf("connect to D-Bus: %w", ctx.Err())
	}
}

func (l *SystemdLauncher) hangUp(b bus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == b && !b.Connected() {
		b.Close()
		l.conn = nil
	}
}

// explainBus adds what to do to what D-Bus says.
func explainBus(err error) error {
	var e godbus.Error
	switch {
	case errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" || e.Name == "org.freedesktop.DBus.Error.AccessDenied"):
		return fmt.Errorf("%w: polkit does not let user %d start engines: is polkitd installed, and /usr/share/polkit-1/rules.d/50-warmd.rules there?", err, os.Getuid())
	case errors.As(err, &e) && e.Name == "org.freedesktop.systemd1.NoSuchUnit":
		return fmt.Errorf("%w: warmd-runtime@.service is not installed: is the package whole? systemctl daemon-reload", err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: D-Bus does not run: systemctl start dbus.socket (or set launcher = \"exec\" on a host without systemd)", err)
	}
	return err
}
