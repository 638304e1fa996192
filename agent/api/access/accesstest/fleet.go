// Package accesstest makes the certificates of a fleet for tests: a CA, files of every
// kind, and the wrong ones (expired, not valid yet, of another CA). Lives are counted
// from now, so no test depends on the year.
package accesstest

import (
	"crypto/x509"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/api/access"
	"warmd/agent/api/access/pki"
)

// Fleet is a CA and a folder of certificate files.
type Fleet struct {
	Dir string
	CA  *pki.Authority
	t   testing.TB
}

// New makes a CA.
func New(t testing.TB) *Fleet {
	t.Helper()
	ca, err := pki.NewAuthority(pki.UnitFleet, time.Now().Add(-48*time.Hour), 96*time.Hour)
	require.NoError(t, err)
	f := &Fleet{Dir: t.TempDir(), CA: ca, t: t}
	f.Trust(ca)
	return f
}

// Trust writes the CA file anew: the CAs that everybody trusts from now on.
func (f *Fleet) Trust(cas ...*pki.Authority) {
	f.t.Helper()
	var certs []*x509.Certificate
	for _, ca := range cas {
		certs = append(certs, ca.Cert)
	}
	f.write("ca.crt", pki.EncodeCerts(certs...))
}

// Files issues a certificate that is valid for an hour.
func (f *Fleet) Files(unit, name string, addresses ...string) access.Files {
	f.t.Helper()
	return f.Issue(pki.Leaf{Name: name, Unit: unit, Addresses: addresses, Server: true, Client: true, Life: time.Hour}, time.Now())
}

// Issue writes the files of a leaf, over those of the same name and unit.
func (f *Fleet) Issue(l pki.Leaf, now time.Time) access.Files {
	f.t.Helper()
	cert, key, err := f.CA.Issue(l, now)
	require.NoError(f.t, err)
	base := l.Unit + "-" + l.Name
	f.write(base+".key", key)
	f.write(base+".crt", cert)
	return access.Files{CA: filepath.Join(f.Dir, "ca.crt"), Cert: filepath.Join(f.Dir, base+".crt"), Key: filepath.Join(f.Dir, base+".key")}
}

// write replaces a file the way an operator's tools do: by a rename.
func (f *Fleet) write(name string, b []byte) {
	f.t.Helper()
	path := filepath.Join(f.Dir, name)
	require.NoError(f.t, os.WriteFile(path+".new", b, 0o600))
	require.NoError(f.t, os.Rename(path+".new", path))
}

// Transport is a client's side of mutual TLS.
func Transport(t testing.TB, f access.Files, name, unit string) *http.Transport {
	t.Helper()
	c, err := access.Load(f, nil)
	require.NoError(t, err)
	tr := &http.Transport{TLSClientConfig: c.Client(name, unit)}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}
