package access

import (
	"fmt"
	"net"
	"net/netip"

	"warmd/placement"
)

// exposed reports whether processes of other hosts can reach an address. A name is
// looked up when it is listened on; until then only localhost is known to be local.
func exposed(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false // whoever checks the form says so
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host != "localhost"
	}
	return !ip.Unmap().IsLoopback()
}

// CheckListen refuses TCP addresses that other hosts can reach without TLS. Every error
// is a *placement.FieldError that names the key.
func (f Files) CheckListen(listen []string) (errs []error) {
	for i, addr := range listen {
		if f.Empty() && exposed(addr) {
			errs = append(errs, &placement.FieldError{Field: fmt.Sprintf("listen[%d]", i), Problem: fmt.Sprintf("%q can be reached from other hosts, which takes %s", addr, whatTLSTakes)})
		}
	}
	return errs
}

const whatTLSTakes = "TLS: set tls.ca, tls.cert and tls.key (`warmctl pki --help` makes them)"

// CheckListeners does the same for listeners that are open: those of systemd, and those
// of a name.
func (f Files) CheckListeners(lns []net.Listener) error {
	for _, ln := range lns {
		if at := ln.Addr(); f.Empty() && at.Network() != "unix" && exposed(at.String()) {
			return &placement.FieldError{Field: "tls", Problem: fmt.Sprintf("is missing: %s can be reached from other hosts, which takes %s", at, whatTLSTakes)}
		}
	}
	return nil
}
