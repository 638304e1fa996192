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
	look := func(ca, cert, key string, mine bool) {
		if f, found := h.checkCertificate(ca, cert, key, mine); found {
			out = append(out, f)
		}
	}
	look(ours[0].path, ours[1].path, ours[2].path, true)
	dir := h.path("/etc/warmd/tls")
	for _, unit := range []string{access.UnitAgent, access.UnitCoordinator} {
		look(filepath.Join(dir, "ca.crt"), filepath.Join(dir, unit+".crt"), filepath.Join(dir, unit+".key"), h.me.uid == 0)
	}
	return out
}

// checkCertificate looks at one set of files. Keys of services are not for everybody:
// one that cannot be read is judged only where it should be (mine).
func (h host) checkCertificate(caFile, certFile, keyFile string, mine bool) (f finding, found bool) {
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
	key, err := os.ReadFile(keyFile)
	switch {
	case err == nil:
		if _, err := tls.X509KeyPair(raw, key); err != nil {
			f.Message = fmt.Sprintf("%sand the key in %s do not belong together", who, keyFile)
			return f, true
		}
	case mine && errors.Is(err, fs.ErrNotExist):
		f.Message = fmt.Sprintf("%shas no key: %s does not exist", who, keyFile)
		return f, true
	case mine && errors.Is(err, fs.ErrPermission):
		f.Message, f.Try = fmt.Sprintf("%shas a key that %s may not read: %s", who, h.me.name, keyFile), "ls -l "+keyFile+"; its owner can make it yours: chown "+h.me.name+" "+keyFile
		return f, true
	case mine:
		f.Message = who + err.Error()
		return f, true
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
