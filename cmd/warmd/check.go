package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"warmd/agent/api/access"
	"warmd/agent/conf"
	"warmd/agent/gossip"
	"warmd/placement"
)

// report is what --check-config finds on this host without starting anything: facts
// that a person would look at next, warnings, and what would not work.
type report struct {
	facts [][2]string
	warn  []string
	bad   []error
	// service is the user that the packaged unit runs as; nil on hosts without it, and
	// for callers who cannot look at everything anyway.
	service *account
}

// newReport looks as the service's user where that is there and root asks: root may
// read everything, which says nothing.
func newReport(service string) *report {
	r := &report{}
	if os.Geteuid() == 0 {
		r.service = findAccount(service)
	}
	return r
}

func (r *report) fact(name, format string, args ...any) {
	r.facts = append(r.facts, [2]string{name, fmt.Sprintf(format, args...)})
}

func (r *report) warning(format string, args ...any) {
	r.warn = append(r.warn, fmt.Sprintf(format, args...))
}

func (r *report) problem(key, format string, args ...any) {
	r.bad = append(r.bad, &placement.FieldError{Field: key, Problem: fmt.Sprintf(format, args...)})
}

// end prints it all, and returns every problem, located.
func (r *report) end(w io.Writer, file *conf.File, path string, invalid error) error {
	for _, s := range r.warn {
		fmt.Fprintln(w, "warning:", s)
	}
	if err := errors.Join(invalid, file.Locate(errors.Join(r.bad...))); err != nil {
		return err
	}
	if path == "" {
		path = "the configuration"
	}
	fmt.Fprintln(w, path+" is valid")
	for _, f := range r.facts {
		fmt.Fprintf(w, "  %-13s %s\n", f[0], f[1])
	}
	return nil
}

// soon is how long before its end a certificate is worth a warning.
const soon = 14 * 24 * time.Hour

// tls looks at one set of certificate files, of which the table is named in front of
// the keys: "tls." or "etcd_".
func (r *report) tls(under string, f access.Files, name, unit string) {
	if f.Empty() || f.Validate() != nil {
		return
	}
	if err := f.Probe(); err != nil {
		r.bad = append(r.bad, err)
		return
	}
	certs, err := access.Load(f, nil)
	if err != nil {
		r.bad = append(r.bad, err)
		return
	}
	leaf := certs.Leaf()
	if unit != "" && !slices.Contains(leaf.Subject.OrganizationalUnit, unit) {
		r.problem(under+"cert", "%s is %s: it must have OU=%s, `warmctl pki issue %s %s` makes one", f.Cert, access.Subject(leaf), unit, unit, name)
	}
	if unit == access.UnitAgent && leaf.VerifyHostname(name) != nil {
		r.problem(under+"cert", "%s is for %s: coordinators call this node %s", f.Cert, access.Names(leaf), name)
	}
	if left := time.Until(leaf.NotAfter); left < soon {
		r.warning("%scert: %s ends in %s", under, f.Cert, left.Round(time.Hour))
	}
	r.readable(under+"ca", f.CA)
	r.readable(under+"cert", f.Cert)
	r.readable(under+"key", f.Key)
	r.secret(under+"key", f.Key)
	r.fact(strings.TrimRight(under, "._"), "%s for %s, signed by %s, until %s", access.Subject(leaf), access.Names(leaf), leaf.Issuer.CommonName, leaf.NotAfter.UTC().Format(time.DateOnly))
}

func (r *report) gossip(s gossip.Settings) {
	if s.Listen == "" || s.Validate() != nil {
		return
	}
	r.local("gossip.listen", s.Listen)
	keys, err := s.ReadKeys()
	if err != nil {
		r.bad = append(r.bad, err)
		return
	}
	with := "not encrypted"
	if len(keys) > 0 {
		with = plural(len(keys), "key")
		r.readable("gossip.keys_file", s.KeysFile)
		r.secret("gossip.keys_file", s.KeysFile)
	}
	join := "nobody: others look for it"
	if len(s.Join) > 0 {
		join = strings.Join(s.Join, ", ")
	}
	r.fact("gossip", "%s, %s, looks for %s", s.Listen, with, join)
}

// groups of [access] that are not there are no fault: they have no members.
func (r *report) groups(g access.Groups) {
	for _, name := range slices.Concat(g.Read, g.Place, g.Admin) {
		if _, err := user.LookupGroup(name); err != nil && !numeric(name) {
			r.warning("access: this host has no group %s", name)
		}
	}
}

// local checks that an address to listen on is one of this host's.
func (r *report) local(key, addr string) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	if !ofThisHost(host) {
		r.problem(key, "%q is not an address of this host (ip address shows them)", addr)
	}
}

func ofThisHost(host string) bool {
	ips := []net.IP{net.ParseIP(host)}
	if ips[0] == nil {
		var err error
		if ips, err = net.LookupIP(host); host == "" || err != nil {
			return host == ""
		}
	}
	have, err := net.InterfaceAddrs()
	if err != nil {
		return true // nobody can say
	}
	for _, ip := range ips {
		if ip.IsUnspecified() || ip.IsLoopback() {
			return true
		}
		for _, a := range have {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
				return true
			}
		}
	}
	return false
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
