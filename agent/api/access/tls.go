package access

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
)

// Server is the TLS side of a listener: it asks for a certificate of one of our CAs.
// What its unit may do is the guard's business.
func (c *Certificates) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := c.current()
			return &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{m.pair},
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: m.pool,
				SessionTicketsDisabled: true, // a ticket would outlive the CA it was given for
			}, nil
		},
	}
}

// Client is the TLS side of calls to one server: its certificate must be of one of our
// CAs, be for name, and have the unit. The error of a handshake is a *ServerError.
func (c *Certificates) Client(name, unit string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, ServerName: name,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &c.current().pair, nil
		},
		// VerifyConnection verifies in its place: with the CAs of this moment, where
		// RootCAs would be those of the moment when the client was made.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return c.verify(cs.PeerCertificates, name, unit)
		},
	}
}

// Now is the TLS side of one call to a server that is none of ours, with the files of
// this moment: whoever takes it anew for each connection follows a rotation.
func (c *Certificates) Now() *tls.Config {
	m := c.current()
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: m.pool, Certificates: []tls.Certificate{m.pair}}
}

// verify checks a server's certificates.
func (c *Certificates) verify(chain []*x509.Certificate, name, unit string) error {
	m := c.current()
	opt := x509.VerifyOptions{Roots: m.pool, Intermediates: x509.NewCertPool(), DNSName: name, CurrentTime: c.now()}
	for _, i := range chain[1:] {
		opt.Intermediates.AddCert(i)
	}
	e := &ServerError{Cert: chain[0], Name: name, Unit: unit, CAFile: m.files.CA, now: opt.CurrentTime}
	if _, e.Err = chain[0].Verify(opt); e.Err != nil {
		return e
	}
	if !slices.Contains(chain[0].Subject.OrganizationalUnit, unit) {
		e.Err = errUnit
		return e
	}
	return nil
}

// Names are who a certificate is for, as people write it.
func Names(c *x509.Certificate) string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "no name at all"
	}
	return strings.Join(all, ", ")
}

// Subject is a certificate in one word.
func Subject(c *x509.Certificate) string {
	return fmt.Sprintf("CN=%s,OU=%s", c.Subject.CommonName, strings.Join(c.Subject.OrganizationalUnit, "+"))
}
