package nspawn

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
)

// Where members of etcd have their certificates.
const (
	etcdCA   = "/etc/etcd-tls/ca.crt"
	etcdCert = "/etc/etcd-tls/member.crt"
	etcdKey  = "/etc/etcd-tls/member.key"
)

// certificates are those that `warmctl pki` made for a fleet, in a folder of the
// first host: the place of the operator's own machine.
type certificates struct {
	desk *host.Host

	mu          sync.Mutex // what the test itself shows and trusts; it changes in a rotation
	fleet, etcd *x509.CertPool
	byRole      map[string]tls.Certificate
}

// client is the configuration of a caller with a role. It follows a rotation.
func (c *certificates) client(role string) *tls.Config {
	return &tls.Config{
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			cert := c.byRole[role]
			return &cert, nil
		},
		InsecureSkipVerify: true, // VerifyConnection does it, by the CAs of the moment
		VerifyConnection: func(s tls.ConnectionState) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: c.fleet, DNSName: s.ServerName})
			return err
		},
	}
}

func (c *certificates) etcdClient() *tls.Config {
	return &tls.Config{RootCAs: c.etcd, Certificates: []tls.Certificate{c.byRole["etcd"]}}
}

// issueCertificates makes two CAs and gives every host what it needs.
func issueCertificates(t *testing.T, hosts []*host.Host) *certificates {
	t.Helper()
	c := &certificates{desk: hosts[0]}
	c.desk.Run(t, "warmctl pki init /root/pki")
	c.issue(t, hosts, "")
	each(t, hosts, func(h *host.Host) {
		c.sendCA(t, h)
		c.send(t, h)
	})
	c.load(t)
	return c
}

// issue makes everybody's certificates.
func (c *certificates) issue(t testing.TB, hosts []*host.Host, flags string) {
	t.Helper()
	var script strings.Builder
	for _, h := range hosts {
		at := " --dir . --address " + h.Addr + " --address " + h.Name + flags
		fmt.Fprintf(&script, "warmctl pki issue agent %s%s && warmctl pki issue coordinator %s-coordinator%s && warmctl pki issue etcd %s%s --address 127.0.0.1 && ",
			h.Name, at, h.Name, at, h.Name, at)
	}
	for _, role := range []string{"read", "place", "admin", "etcd"} {
		fmt.Fprintf(&script, "warmctl pki issue %s test --dir .%s && ", role, flags)
	}
	c.desk.Run(t, "cd /root/pki && "+script.String()+"true")
}

// sendCA brings the CAs to a host.
func (c *certificates) sendCA(t testing.TB, h *host.Host) {
	t.Helper()
	c.bring(t, h, []delivery{
		{"ca.crt", "/etc/warmd/tls/ca.crt", "root"}, {"etcd-ca.crt", "/etc/warmd/tls/etcd-ca.crt", "root"}, {"etcd-ca.crt", etcdCA, "root"},
	})
}

// send brings a host its certificates and keys.
func (c *certificates) send(t testing.TB, h *host.Host) {
	t.Helper()
	var all []delivery
	for _, d := range []delivery{
		{"agent-" + h.Name, "/etc/warmd/tls/agent", "warmd"},
		{"coordinator-" + h.Name + "-coordinator", "/etc/warmd/tls/coordinator", "warmd-coordinator"},
		{"coordinator-" + h.Name + "-coordinator-etcd", "/etc/warmd/tls/etcd", "warmd-coordinator"},
		{"etcd-" + h.Name, "/etc/etcd-tls/member", "root"},
	} {
		all = append(all, delivery{d.from + ".crt", d.to + ".crt", d.group}, delivery{d.from + ".key", d.to + ".key", d.group})
	}
	c.bring(t, h, all)
}

// delivery is a file of the desk that belongs somewhere on a host, readable for a group.
type delivery struct{ from, to, group string }

// bring replaces files on a host, each whole, as anybody should.
func (c *certificates) bring(t testing.TB, h *host.Host, all []delivery) {
	t.Helper()
	var read, write strings.Builder
	for _, d := range all {
		fmt.Fprintf(&read, "cat /root/pki/%s && echo ===== && ", d.from)
	}
	for i, content := range strings.Split(c.desk.Run(t, read.String()+"true"), "=====")[:len(all)] {
		mode := "640"
		if all[i].group == "root" {
			mode = "644"
		}
		to := all[i].to
		fmt.Fprintf(&write, "install -D -m %s -g %s /dev/stdin %s.new <<'END' && mv %s.new %s || exit\n%sEND\n", mode, all[i].group, to, to, to, strings.TrimLeft(content, "\n"))
	}
	h.Run(t, write.String())
}

// load reads what the test itself needs.
func (c *certificates) load(t testing.TB) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	read := func(file string) []byte { return []byte(c.desk.Run(t, "cat /root/pki/"+file)) }
	c.fleet, c.etcd = x509.NewCertPool(), x509.NewCertPool()
	require.True(t, c.fleet.AppendCertsFromPEM(read("ca.crt")))
	require.True(t, c.etcd.AppendCertsFromPEM(read("etcd-ca.crt")))
	c.byRole = map[string]tls.Certificate{}
	for _, role := range []string{"read", "place", "admin", "etcd"} {
		cert, err := tls.X509KeyPair(read(role+"-test.crt"), read(role+"-test.key"))
		require.NoError(t, err)
		c.byRole[role] = cert
	}
}
