package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// Notifier tells systemd how we are (sd_notify). Every method is a no-op when
// nobody listens, and a message that cannot be sent is logged, never fatal: a
// service manager that is unwell must not take the service down. Methods may be
// called at once.
type Notifier struct {
	addr     *net.UnixAddr // nil: nobody listens
	watchdog time.Duration // 0: no watchdog
	log      *slog.Logger
	ready    atomic.Bool            // Ready was said
	line     atomic.Pointer[string] // what Ready or Status said last
}

// NewNotifier takes the notify socket and the watchdog's time out of the
// environment, so that no child can speak in our name.
func NewNotifier(log *slog.Logger) *Notifier {
	n := &Notifier{log: log}
	if name := os.Getenv("NOTIFY_SOCKET"); name != "" {
		n.addr = &net.UnixAddr{Name: name, Net: "unixgram"} // "@..." is abstract, here as there
		os.Unsetenv("NOTIFY_SOCKET")
	}
	var err error
	if n.watchdog, err = daemon.SdWatchdogEnabled(true); err != nil {
		log.Warn("no watchdog", "err", err)
	}
	return n
}

// Enabled reports whether systemd listens.
func (n *Notifier) Enabled() bool { return n.addr != nil }

// Ready says that the service is up, or that a reload is over. Send it when the
// first claim could be taken, not before.
func (n *Notifier) Ready(status string) {
	n.ready.Store(true)
	n.line.Store(&status)
	n.send(daemon.SdNotifyReady, status)
}

// Stopping says that the service is ending on purpose.
func (n *Notifier) Stopping(status string) { n.send(daemon.SdNotifyStopping, status) }

// Reload says that the configuration is being read again, calls f, and says that it
// is over, with f's line as the status. A service that was not ready before does not
// become so by it.
func (n *Notifier) Reload(f func() (status string)) {
	if !n.ready.Load() {
		f()
		return
	}
	n.Reloading()
	n.Ready(f())
}

// Reloading says that the configuration is being read again; Ready ends it. The
// time is what Type=notify-reload wants; older versions ignore it.
func (n *Notifier) Reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		n.log.Warn("read monotonic clock", "err", err)
	}
	n.send(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000), "")
}

// Status is the line in `systemctl status`.
func (n *Notifier) Status(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	n.line.Store(&line)
	n.send("", line)
}

// Extend asks for more time to start or to stop, from now.
func (n *Notifier) Extend(d time.Duration) {
	n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()), "")
}

// Watchdog pets the watchdog while alive returns nil, until ctx ends; it returns
// nil then, and at once when there is no watchdog. alive should ask the parts that
// matter and be quick: when it hangs, nobody pets, which is the point.
//
// It pets three times in systemd's interval, so that one late turn on a starved
// host is not a restart. While alive fails, that is the status; then it is again what
// it was.
func (n *Notifier) Watchdog(ctx context.Context, alive func() error) error {
	if n.addr == nil || n.watchdog == 0 {
		return nil
	}
	tick := time.NewTicker(n.watchdog / 3)
	defer tick.Stop()
	unwell := false
	for {
		if err := alive(); err == nil {
			n.send(daemon.SdNotifyWatchdog, "")
			if unwell {
				n.log.Info("well again")
				if line := n.line.Load(); line != nil {
					n.send("", *line)
				}
			}
			unwell = false
		} else if !unwell {
			unwell = true
			n.log.Error("unwell: systemd restarts this service unless that ends soon", "err", err, "within", n.watchdog)
			n.send("", fmt.Sprintf("unwell: %v", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// send writes one datagram: the state, and the status when there is one.
func (n *Notifier) send(state, status string) {
	if n.addr == nil {
		return
	}
	if status != "" {
		// A line of ours must not become another assignment.
		state = strings.TrimPrefix(state+"\nSTATUS="+strings.Join(strings.Fields(status), " "), "\n")
	}
	if err := n.write(state); err != nil {
		n.log.Warn("notify systemd", "state", state, "err", err)
	}
}

func (n *Notifier) write(state string) error {
	conn, err := net.DialUnix("unixgram", nil, n.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	// PID 1 may be busy; waiting for it without end would be the hang that the
	// watchdog is there to find.
	if err := conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return err
}
