package api

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"warmd/agent/api/access"
)

// Listen returns what a server listens on: the given sockets, those of systemd, or where
// there are none a Unix socket, unless its path is empty, and TCP addresses. It refuses
// those that other hosts can reach without TLS. With an error none of them is open.
func Listen(given []net.Listener, socket string, tcp []string, tls access.Files) (lns []net.Listener, err error) {
	lns = given
	if len(given) == 0 {
		lns, err = open(socket, tcp)
	}
	if err == nil {
		err = tls.CheckListeners(lns)
	}
	if err != nil {
		for _, ln := range lns {
			_ = ln.Close()
		}
		return nil, fmt.Errorf("listen: %w", err)
	}
	return lns, nil
}

// open returns with an error what it has opened before that.
func open(socket string, tcp []string) (lns []net.Listener, err error) {
	if socket != "" {
		ln, err := listenUnix(socket)
		if err != nil {
			return nil, fmt.Errorf("on %s: %w", socket, err)
		}
		lns = append(lns, ln)
	}
	for _, addr := range tcp {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return lns, fmt.Errorf("on %s: %w (another server of warmd, or another program? ss -ltnp shows it)", addr, err)
		}
		lns = append(lns, ln)
	}
	return lns, nil
}

// listenUnix makes a socket for the owner and the group. A server that was killed leaves
// its file behind: one that nobody answers on is taken over, anything else is not.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, errors.New("another server answers there")
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, errors.New("it is there and is not a socket: move it away")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = ln.Close()
		return nil, err
	}
	return ln, nil
}
