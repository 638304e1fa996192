package device

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"

	"warmd/placement"
)

// onEveryAddress refuses an engine that listens on every address of the host: it chose
// for itself, and is open to networks that endpoint_host does not mean. Only our engine
// can be meant: nobody else can listen there while we hold the port.
func (e *Endpoint) onEveryAddress() error {
	if e == nil {
		return nil
	}
	if ip := net.ParseIP(e.host); ip != nil && ip.IsUnspecified() {
		return nil
	}
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue // no IPv6 here
		}
		found := wildcard(bufio.NewScanner(f), e.Port)
		_ = f.Close()
		if found {
			return placement.Errorf(placement.CodeStartFailed, "the engine listens on every address of this host at port %d, where endpoint_host is %s", e.Port, e.host).
				WithHint("give its command the address: warmd runtime add NAME --exec -- COMMAND --host {host} --port {port}")
		}
	}
	return nil
}

// wildcard looks for a listening socket with an address of zeros in a table of the
// kernel's TCP sockets.
func wildcard(table *bufio.Scanner, port int) bool {
	const listening = "0A"
	end := fmt.Sprintf(":%04X", port)
	for table.Scan() {
		c := strings.Fields(table.Text())
		if len(c) < 4 || c[3] != listening {
			continue
		}
		if addr, ok := strings.CutSuffix(c[1], end); ok && strings.Trim(addr, "0") == "" {
			return true
		}
	}
	return false
}
