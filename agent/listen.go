package agent

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// listen takes the sockets that came along, or opens those of the configuration. A
// Unix socket that nobody answers on is a leftover.
func (a *Agent) listen() error {
	add := func(ln net.Listener) {
		a.listeners = append(a.listeners, ln)
		a.onClose("listener "+ln.Addr().String(), func() error { _ = ln.Close(); return nil }) // Serve closes it, too
	}
	for _, ln := range a.opt.Listeners { // copies of systemd's: closing them refuses nobody
		add(ln)
	}
	if len(a.listeners) > 0 {
		return a.findAddr()
	}
	if a.cfg.Socket != "" {
		ln, err := listenUnix(a.cfg.Socket)
		if err != nil {
			return err
		}
		add(ln)
	}
	for _, addr := range a.cfg.Listen {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("listen on %s: %w (another agent, or another program? ss -ltnp shows it)", addr, err)
		}
		add(ln)
	}
	return a.findAddr()
}

// findAddr decides what the fleet calls, once the sockets are ones that may be served.
func (a *Agent) findAddr() error {
	if err := a.cfg.TLS.CheckListeners(a.listeners); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	a.addr = a.cfg.Advertise
	for _, ln := range a.listeners {
		if a.addr == "" && ln.Addr().Network() == "tcp" {
			a.addr = ln.Addr().String()
		}
	}
	return nil
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make socket folder: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("listen on %s: another agent answers there", path)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("listen on %s: it is there and is not a socket: move it away", path)
		}
		_ = os.Remove(path)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("set mode of %s: %w", path, err)
	}
	return ln, nil
}

// Addr is the address that the fleet calls; empty when the agent listens locally
// only.
func (a *Agent) Addr() string { return a.addr }
