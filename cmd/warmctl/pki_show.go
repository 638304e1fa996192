package main

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"

	"warmd/agent/api/access"
	"warmd/agent/api/access/pki"
	"warmd/placement"
)

// shown is a certificate, for -o json.
type shown struct {
	Name     string    `json:"name"`
	Kind     string    `json:"kind"` // the OU: a role, agent, coordinator, etcd
	CA       bool      `json:"ca"`
	Names    []string  `json:"names"`
	Uses     []string  `json:"uses"`
	SignedBy string    `json:"signed_by"`
	From     time.Time `json:"from"`
	Until    time.Time `json:"until"`
	Serial   string    `json:"serial"`
	// Problem says that it is outside its time.
	Problem string `json:"problem,omitempty"`
}

func pkiShow(c *call, path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return placement.Errorf(placement.CodeNotFound, "read certificate: %v", err)
	}
	certs, err := pki.ParseCerts(raw)
	if err != nil {
		e := placement.Errorf(placement.CodeBadRequest, "%s: %v", path, err)
		if strings.Contains(string(raw), "PRIVATE KEY") {
			e.Message = path + " is a private key"
			return e.WithHint("show the .crt beside it")
		}
		return e
	}
	out := make([]shown, len(certs))
	for i, cert := range certs {
		out[i] = describeCert(cert, c.Now())
	}
	if c.json {
		return c.printJSON(out)
	}
	for i, s := range out {
		if i > 0 {
			fmt.Fprintln(c.Out)
		}
		kind := s.Kind
		if s.CA {
			kind = "CA of " + kind
		}
		valid := fmt.Sprintf("%s to %s", s.From.Format(time.DateOnly), s.Until.Format(time.DateOnly))
		if left := int(s.Until.Sub(c.Now()) / (24 * time.Hour)); s.Problem == "" {
			valid += fmt.Sprintf(", %s left", plural(left, "day"))
		}
		fields(c.Out, "", "name", s.Name, "kind", kind, "names", strings.Join(s.Names, ", "), "for", strings.Join(s.Uses, ", "),
			"signed by", s.SignedBy, "valid", valid, "problem", s.Problem, "serial", s.Serial)
	}
	return nil
}

func describeCert(c *x509.Certificate, now time.Time) shown {
	s := shown{
		Name: c.Subject.CommonName, Kind: strings.Join(c.Subject.OrganizationalUnit, "+"), CA: c.IsCA, Names: []string{}, Uses: []string{},
		SignedBy: c.Issuer.CommonName, From: c.NotBefore.UTC(), Until: c.NotAfter.UTC(), Serial: c.SerialNumber.Text(16),
	}
	s.Names = append(s.Names, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		s.Names = append(s.Names, ip.String())
	}
	for _, u := range c.ExtKeyUsage {
		switch u {
		case x509.ExtKeyUsageServerAuth:
			s.Uses = append(s.Uses, "server")
		case x509.ExtKeyUsageClientAuth:
			s.Uses = append(s.Uses, "client")
		}
	}
	if err := access.OutsideItsTime(c, now); err != nil {
		s.Problem = err.Error()
	}
	return s
}
