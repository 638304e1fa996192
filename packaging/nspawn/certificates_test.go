package nspawn

import (
	"crypto/tls"
	"crypto/x509"
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
	c.mu.Lock()
	defer c.mu.Unlock()
	return &tls.Config{
		RootCAs: c.fleet,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			cert := c.byRole[role]
			return &cert, nil
		},
	}
}

func (c *certificates) etcdClient() *tls.Config {
	return &tls.Config{RootCAs: c.etcd, Certificates: []tls.Certificate{c.byRole["etcd"]}}
}

const inPKI = "cd /root/pki && warmctl pki "

// issueCertificates makes two CAs and gives every host what it needs.
func issueCertificates(t *testing.T, hosts []*host.Host) *certificates {
	t.Helper()
	c := &certificates{desk: hosts[0]}
	c.desk.Run(t, "install -d -m 700 /root/pki")
	c.desk.Run(t, inPKI+"init .")
	c.issue(t, hosts, "")
	for _, h := range hosts {
		c.sendCA(t, h)
		c.send(t, h)
	}
	c.load(t)
	return c
}

// issue makes everybody's certificates.
func (c *certificates) issue(t testing.TB, hosts []*host.Host, flags string) {
	t.Helper()
	for _, h := range hosts {
		at := " --dir . --address " + h.Addr + " --address " + h.Name + flags
		c.desk.Run(t, inPKI+"issue agent "+h.Name+at)
		c.desk.Run(t, inPKI+"issue coordinator "+h.Name+"-coordinator"+at)
		c.desk.Run(t, inPKI+"issue etcd "+h.Name+at+" --address 127.0.0.1")
	}
	for _, role := range []string{"read", "place", "admin", "etcd"} {
		c.desk.Run(t, inPKI+"issue "+role+" test --dir ."+flags)
	}
}

// sendCA brings the CAs to a host.
func (c *certificates) sendCA(t testing.TB, h *host.Host) {
	t.Helper()
	c.copy(t, h, "ca.crt", "/etc/warmd/tls/ca.crt", "root")
	c.copy(t, h, "etcd-ca.crt", "/etc/warmd/tls/etcd-ca.crt", "root")
	c.copy(t, h, "etcd-ca.crt", etcdCA, "root")
}

// send brings a host its certificates and keys.
func (c *certificates) send(t testing.TB, h *host.Host) {
	t.Helper()
	for _, f := range []struct{ from, to, group string }{
		{"agent-" + h.Name, "/etc/warmd/tls/agent", "warmd"},
		{"coordinator-" + h.Name + "-coordinator", "/etc/warmd/tls/coordinator", "warmd-coordinator"},
		{"coordinator-" + h.Name + "-coordinator-etcd", "/etc/warmd/tls/etcd", "warmd-coordinator"},
		{"etcd-" + h.Name, "/etc/etcd-tls/member", "root"},
	} {
		c.copy(t, h, f.from+".crt", f.to+".crt", "root")
		c.copy(t, h, f.from+".key", f.to+".key", f.group)
	}
}

// copy replaces a file on a host whole, as anybody should.
func (c *certificates) copy(t testing.TB, h *host.Host, from, to, group string) {
	t.Helper()
	h.Write(t, to+".new", c.desk.Run(t, "cat /root/pki/"+from)+"\n", 0o640)
	mode := "640"
	if group == "root" {
		mode = "644"
	}
	h.Run(t, "chown root:"+group+" "+to+".new && chmod "+mode+" "+to+".new && mv "+to+".new "+to)
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
