package pki

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func authority(t *testing.T) *Authority {
	t.Helper()
	ca, err := NewAuthority(UnitFleet, now, 10*365*24*time.Hour)
	require.NoError(t, err)
	return ca
}

func TestACertificateSaysWhatItIsFor(t *testing.T) {
	ca := authority(t)
	certPEM, keyPEM, err := ca.Issue(Leaf{Name: "gpu1", Unit: "agent", Addresses: []string{"10.0.0.1", "gpu1.example.org", "::1"}, Server: true, Client: true, Life: time.Hour}, now)
	require.NoError(t, err)
	certs, err := ParseCerts(append(keyPEM, certPEM...))
	require.NoError(t, err)
	c := certs[0]
	require.Equal(t, "gpu1", c.Subject.CommonName)
	require.Equal(t, []string{"agent"}, c.Subject.OrganizationalUnit)
	require.Equal(t, []string{"gpu1", "gpu1.example.org"}, c.DNSNames)
	require.Equal(t, []string{"10.0.0.1", "::1"}, []string{c.IPAddresses[0].String(), c.IPAddresses[1].String()})
	require.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, c.ExtKeyUsage)
	require.Equal(t, now.Add(time.Hour), c.NotAfter)
	require.False(t, c.IsCA)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	_, err = c.Verify(x509.VerifyOptions{Roots: pool, DNSName: "10.0.0.1", CurrentTime: now})
	require.NoError(t, err)
}

func TestAnAuthorityIsFoundByItsKeyInABundle(t *testing.T) {
	a, b := authority(t), authority(t)
	require.NotEqual(t, a.Cert.Subject.CommonName, b.Cert.Subject.CommonName)
	key, err := EncodeKey(b.Key)
	require.NoError(t, err)
	got, err := ParseAuthority(EncodeCerts(a.Cert, b.Cert), key)
	require.NoError(t, err)
	require.True(t, got.Cert.Equal(b.Cert))
	_, err = ParseAuthority(EncodeCerts(a.Cert), key)
	require.ErrorContains(t, err, "belongs to none")
	_, err = ParseAuthority(EncodeCerts(a.Cert), []byte("x"))
	require.ErrorContains(t, err, "no PEM private key")
	_, err = ParseAuthority(nil, key)
	require.ErrorContains(t, err, "no PEM certificate")
}

func TestNoCertificateOutlivesItsAuthority(t *testing.T) {
	ca := authority(t)
	later := ca.Cert.NotAfter.Add(-time.Hour)
	certPEM, _, err := ca.Issue(Leaf{Name: "x", Life: 1000 * time.Hour}, later)
	require.NoError(t, err)
	certs, err := ParseCerts(certPEM)
	require.NoError(t, err)
	require.Equal(t, ca.Cert.NotAfter, certs[0].NotAfter)
	_, _, err = ca.Issue(Leaf{Name: "x", Life: time.Hour}, ca.Cert.NotAfter)
	require.ErrorContains(t, err, "has expired")
}

func TestWhatIsNoNameIsRefused(t *testing.T) {
	ca := authority(t)
	for _, l := range []Leaf{
		{Life: 1}, {Name: "../x", Life: 1}, {Name: "a b", Life: 1}, {Name: "x", Addresses: []string{"h:80"}, Life: 1},
		{Name: "x", Addresses: []string{"*.example.org"}, Life: 1}, {Name: "x", Addresses: []string{"http://h"}, Life: 1}, {Name: "x"},
	} {
		_, _, err := ca.Issue(l, now)
		require.Error(t, err, "%+v", l)
	}
}
