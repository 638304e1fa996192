package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"warmd/agent/api/access"
	"warmd/agent/api/access/pki"
)

// renewIn is how long before its end a certificate should be replaced.
const renewIn = 30 * 24 * time.Hour

// checkCertificates looks at the certificates that are where they usually are: ours,
// and those of the host's agent and coordinator. None is no fault.
func (h host) checkCertificates(ours []tlsFile) []finding {
	var out []finding
	look := func(ca, cert, key string) {
		if f, found := h.checkCertificate(ca, cert, key); found {
			out = append(out, f)
		}
	}
	look(ours[0].path, ours[1].path, ours[2].path)
	dir := h.path("/etc/warmd/tls")
	for _, unit := range []string{access.UnitAgent, access.UnitCoordinator} {
		look(filepath.Join(dir, "ca.crt"), filepath.Join(dir, unit+".crt"), filepath.Join(dir, unit+".key"))
	}
	return out
}

func (h host) checkCertificate(caFile, certFile, keyFile string) (f finding, found bool) {
	f = finding{Check: "certificate", Status: broken, Try: "have it made anew: warmctl pki issue"}
	raw, err := os.ReadFile(certFile)
	if errors.Is(err, fs.ErrNotExist) {
		return f, false
	}
	if err != nil {
		f.Message, f.Try = fmt.Sprint(err), "its mode should be 0644: only the key is secret"
		return f, true
	}
	certs, err := pki.ParseCerts(raw)
	if err != nil {
		f.Message = certFile + ": " + err.Error()
		return f, true
	}
	c, now := certs[0], h.now()
	who := certFile + " (" + access.Subject(c) + ") "
	if units := c.Subject.OrganizationalUnit; len(units) > 0 {
		f.Try += " " + units[0] + " " + c.Subject.CommonName
	}
	if err := access.OutsideItsTime(c, now); err != nil {
		f.Message = who + err.Error()
		if strings.Contains(f.Message, "one of the clocks") {
			f.Try = "timedatectl on both hosts; " + f.Try
		}
		return f, true
	}
	if err := signedBy(c, certs[1:], caFile, now); err != nil {
		f.Message = who + err.Error()
		return f, true
	}
	// Keys of services are not for everybody: what cannot be read is not judged.
	if key, err := os.ReadFile(keyFile); err == nil {
		if _, err := tls.X509KeyPair(raw, key); err != nil {
			f.Message = fmt.Sprintf("%sand the key in %s do not belong together", who, keyFile)
			return f, true
		}
	}
	left := c.NotAfter.Sub(now)
	if left < renewIn {
		f.Status, f.Message = warn, fmt.Sprintf("%sends in %s", who, plural(int(left/(24*time.Hour)), "day"))
		return f, true
	}
	return finding{"certificate", fine, fmt.Sprintf("%sis for %s, until %s", who, access.Names(c), c.NotAfter.Format(time.DateOnly)), ""}, true
}

// signedBy checks a certificate against a CA file.
func signedBy(c *x509.Certificate, chain []*x509.Certificate, caFile string, now time.Time) error {
	raw, err := os.ReadFile(caFile)
	if err != nil {
		return fmt.Errorf("has no CA beside it: %w", err)
	}
	cas, err := pki.ParseCerts(raw)
	if err != nil {
		return fmt.Errorf("has no CA beside it: %s: %w", caFile, err)
	}
	opt := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	for _, ca := range cas {
		opt.Roots.AddCert(ca)
	}
	for _, i := range chain {
		opt.Intermediates.AddCert(i)
	}
	if _, err := c.Verify(opt); err != nil {
		return fmt.Errorf("is signed by %q, which is not in %s", c.Issuer.CommonName, caFile)
	}
	return nil
}
