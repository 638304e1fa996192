package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"warmd/agent/api/access"
	"warmd/agent/api/access/pki"
	"warmd/placement"
)

// kind is what a certificate is made for.
type kind struct {
	ca     string // stem of the CA's files
	server bool
	// goes says where the files belong, as a folder and a stem.
	goes string
}

var kinds = map[string]kind{
	access.UnitAgent:       {"ca", true, "/etc/warmd/tls/agent"},
	access.UnitCoordinator: {"ca", true, "/etc/warmd/tls/coordinator"},
	"read":                 {"ca", false, "~/.config/warmd/tls/client"},
	"place":                {"ca", false, "~/.config/warmd/tls/client"},
	"admin":                {"ca", false, "~/.config/warmd/tls/client"},
	pki.UnitEtcd:           {"etcd-ca", true, "/etc/etcd/tls/etcd"},
}

func pkiIssue(c *call, unit, name string) error {
	k, ok := kinds[unit]
	if !ok {
		return usagef("%q is no kind of certificate", unit).WithHint("agent, coordinator, read, place, admin and etcd are")
	}
	life, err := c.life(leafDays)
	if err != nil {
		return err
	}
	leaf := pki.Leaf{Name: name, Unit: unit, Addresses: c.flags.StringSlice("address"), Server: k.server, Client: true, Life: life}
	if err := leaf.Validate(); err != nil {
		if f, ok := errors.AsType[*placement.FieldError](err); ok && f.Field == "address" {
			return usagef("--address %s", f.Problem)
		}
		return err
	}
	dir := c.flags.String("dir")
	base := filepath.Join(dir, unit+"-"+strings.ReplaceAll(name, ":", "_"))
	jobs := []job{{k.ca, base, k.goes, leaf}}
	if unit == access.UnitCoordinator {
		leaf.Addresses, leaf.Server = nil, false
		jobs = append(jobs, job{"etcd-ca", base + "-etcd", "/etc/warmd/tls/etcd", leaf})
	}
	for _, j := range jobs {
		if path := j.base + ".key"; exists(path) && !c.flags.Bool("force") {
			return usagef("%s is there already", path).WithHint("--force replaces it; the old certificate stays valid until it ends")
		}
	}
	var out []made
	var next []string
	for _, j := range jobs {
		m, err := c.issue(dir, j)
		if err != nil {
			return err
		}
		out = append(out, m)
		next = append(next, fmt.Sprintf("%s.{crt,key} and %s as %s", j.goes, filepath.Base(m.CA), filepath.Join(filepath.Dir(j.goes), filepath.Base(m.CA))))
	}
	return c.tell(out, "they belong on the host of "+name+": "+strings.Join(next, "; "))
}

// job is one certificate to make.
type job struct {
	ca, base, goes string
	leaf           pki.Leaf
}

// issue makes one pair of files, the key first: a certificate is never there without.
func (c *call) issue(dir string, j job) (made, error) {
	ca, err := readAuthority(dir, j.ca)
	if err != nil {
		return made{}, err
	}
	certPEM, keyPEM, err := ca.Issue(j.leaf, c.Now())
	if err != nil {
		return made{}, err
	}
	certs, err := pki.ParseCerts(certPEM)
	if err != nil {
		return made{}, err
	}
	if err := errors.Join(replaceFile(j.base+".key", keyPEM, 0o600), replaceFile(j.base+".crt", certPEM, 0o644)); err != nil {
		return made{}, err
	}
	if wanted := c.Now().Add(j.leaf.Life); certs[0].NotAfter.Before(wanted.Add(-time.Hour)) {
		fmt.Fprintf(c.Err, "warmctl: the CA ends before the %s asked for\n", plural(int(j.leaf.Life/(24*time.Hour)), "day"))
	}
	return made{Cert: j.base + ".crt", Key: j.base + ".key", CA: filepath.Join(dir, j.ca+".crt"), Subject: access.Subject(certs[0]),
		Names: access.Names(certs[0]), Until: certs[0].NotAfter}, nil
}
