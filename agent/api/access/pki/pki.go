// Package pki makes certificates for a fleet that has no authority of its own: one CA
// for warmd, another for etcd, ECDSA P-256 throughout. It works on bytes: files,
// overwriting and what to do next are the business of `warmctl pki`.
//
// A certificate's organizational unit is the role that package access reads from it.
// etcd has a CA of its own because it knows no roles: whoever its CA has signed may
// write any record, and a certificate to look at the fleet must not be enough for that.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"warmd/placement"
)

// The units of the two authorities.
const (
	UnitFleet = "warmd"
	UnitEtcd  = "etcd"
)

// Backdate is how much older a certificate claims to be than it is: clocks of hosts
// differ, and one that was just issued should do everywhere.
const Backdate = 5 * time.Minute

// Authority signs certificates.
type Authority struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// NewAuthority makes a CA. Its name is its own, so that two of a rotation can be told
// apart.
func NewAuthority(unit string, now time.Time, life time.Duration) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	tail := make([]byte, 4)
	_, _ = rand.Read(tail) // never fails
	t := &x509.Certificate{
		SerialNumber: serial(), NotBefore: now.Add(-Backdate), NotAfter: now.Add(life),
		Subject: pkix.Name{CommonName: unit + " CA " + hex.EncodeToString(tail), OrganizationalUnit: []string{unit}},
		IsCA:    true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	return &Authority{Cert: cert, Key: key}, err
}

// Leaf is what a certificate says.
type Leaf struct {
	// Name is the CN, and one of the names that a server is called by.
	Name string
	// Unit is the OU.
	Unit string
	// Addresses are further DNS names and IP addresses.
	Addresses []string
	// Server and Client say what the certificate may be used as.
	Server, Client bool
	// Life ends no later than the authority's.
	Life time.Duration
}

// nameRE is what a name of a node, a coordinator or a person may be; it is the name of
// a file too.
var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}$`)

// Validate says which field is wrong; the error is a *placement.FieldError.
func (l Leaf) Validate() error {
	if !nameRE.MatchString(l.Name) {
		return &placement.FieldError{Field: "name", Problem: fmt.Sprintf("%q must match %s", l.Name, nameRE)}
	}
	for _, a := range l.Addresses {
		if u, err := url.Parse("https://" + a); net.ParseIP(a) == nil && (err != nil || u.Host != a || u.Port() != "" || strings.Contains(a, "*")) {
			return &placement.FieldError{Field: "address", Problem: fmt.Sprintf("%q must be an IP address or a DNS name, without a port", a)}
		}
	}
	if l.Life <= 0 {
		return &placement.FieldError{Field: "days", Problem: "must be at least 1"}
	}
	return nil
}

// Issue signs a certificate for a new key. Both come back as PEM.
func (a *Authority) Issue(l Leaf, now time.Time) (certPEM, keyPEM []byte, err error) {
	if err := l.Validate(); err != nil {
		return nil, nil, err
	}
	if !now.Before(a.Cert.NotAfter) {
		return nil, nil, fmt.Errorf("issue certificate: the CA %s has expired on %s", a.Cert.Subject.CommonName, a.Cert.NotAfter.Format(time.DateOnly))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial(), NotBefore: now.Add(-Backdate), NotAfter: now.Add(l.Life), KeyUsage: x509.KeyUsageDigitalSignature,
		Subject: pkix.Name{CommonName: l.Name, OrganizationalUnit: []string{l.Unit}}, BasicConstraintsValid: true,
	}
	if t.NotBefore.Before(a.Cert.NotBefore) {
		t.NotBefore = a.Cert.NotBefore
	}
	if t.NotAfter.After(a.Cert.NotAfter) {
		t.NotAfter = a.Cert.NotAfter
	}
	if l.Server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if l.Client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	for _, n := range append([]string{l.Name}, l.Addresses...) {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if !slices.Contains(t.DNSNames, n) {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.Cert, key.Public(), a.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate: %w", err)
	}
	keyPEM, err = EncodeKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, err
}

// EncodeCerts makes PEM of certificates.
func EncodeCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// ParseCerts reads every certificate of a PEM file; keys in it are passed over.
func ParseCerts(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d is damaged: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no PEM certificate in it")
	}
	return out, nil
}

// EncodeKey makes PEM of a private key.
func EncodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseAuthority joins a CA's key with its certificate, which may be one of a bundle.
func ParseAuthority(bundle, key []byte) (*Authority, error) {
	certs, err := ParseCerts(bundle)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(key)
	if block == nil {
		return nil, errors.New("no PEM private key in it")
	}
	any1, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the private key is damaged: %w", err)
	}
	k, ok := any1.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the private key is not of ECDSA")
	}
	for _, c := range certs {
		if c.IsCA && k.PublicKey.Equal(c.PublicKey) {
			return &Authority{Cert: c, Key: k}, nil
		}
	}
	return nil, errors.New("the private key belongs to none of the CA certificates")
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
