package access

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

var errUnit = errors.New("wrong organizational unit")

// ServerError is a server's certificate that a client does not accept.
type ServerError struct {
	Cert   *x509.Certificate
	Name   string // whom we called
	Unit   string // what it should be: agent or coordinator
	CAFile string
	Err    error
	now    time.Time
}

func (e *ServerError) Unwrap() error { return e.Err }

func (e *ServerError) Error() string {
	who := "the server's certificate (" + Subject(e.Cert) + ") "
	if err := OutsideItsTime(e.Cert, e.now); err != nil {
		return who + err.Error()
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](e.Err); ok {
		return fmt.Sprintf("%sis signed by %q, which is not in %s", who, e.Cert.Issuer.CommonName, e.CAFile)
	}
	if _, ok := errors.AsType[x509.HostnameError](e.Err); ok {
		return fmt.Sprintf("%sis for %s, not for %s", who, Names(e.Cert), e.Name)
	}
	if errors.Is(e.Err, errUnit) {
		return who + "is not that of a server of kind " + e.Unit
	}
	return who + "is refused: " + e.Err.Error()
}

// Hint is what to do about it.
func (e *ServerError) Hint() string {
	issue := fmt.Sprintf("warmctl pki issue %s %s", e.Unit, e.Cert.Subject.CommonName)
	switch {
	case OutsideItsTime(e.Cert, e.now) != nil:
		return "check the clocks of both hosts (timedatectl), or replace the certificate: " + issue
	case errors.Is(e.Err, errUnit):
		return "is this the address of another server? Its certificate must have OU=" + e.Unit
	}
	if _, ok := errors.AsType[x509.HostnameError](e.Err); ok {
		return fmt.Sprintf("call it by one of those names, or replace the certificate: %s --address %s", issue, e.Name)
	}
	return "take the fleet's CA file, or add this CA to yours; if nobody made it, somebody else answers there"
}

// alerts are what a server says about our certificate, in the words of crypto/tls,
// which has no exported type for them.
var alerts = []struct{ alert, what, hint string }{
	{"certificate required", "the server wants a client certificate, and there is none",
		"give one with --tls-cert and --tls-key; who runs the fleet makes it with warmctl pki issue read NAME"},
	{"unknown certificate authority", "the server does not know the CA that signed our certificate",
		"use a certificate of the fleet's CA; during a change of CA the server needs the new one in its tls.ca first"},
	{"expired certificate", "the server says that our certificate has expired",
		"replace it (warmctl pki issue), or check the clocks of both hosts: timedatectl"},
	{"unsupported certificate", "the server refuses our certificate", "it must be one for clients: warmctl pki issue makes those"},
	{"bad certificate", "the server refuses our certificate",
		"it may be expired, not valid yet by the server's clock, or not one for clients; the server's log says which (audit=true)"},
	{"unknown certificate", "the server refuses our certificate", "the server's log says why (audit=true)"},
}

// Explain says what a failed TLS connection means and what to do; ok is false when err
// is about something else.
func Explain(err error) (what, hint string, ok bool) {
	if e, ok := errors.AsType[*ServerError](err); ok {
		return e.Error(), e.Hint(), true
	}
	if _, plain := errors.AsType[tls.RecordHeaderError](err); plain || errors.Is(err, http.ErrSchemeMismatch) {
		return "the server speaks plain HTTP, not TLS", "use http:// if it listens on loopback only; else give it [tls] in its configuration", true
	}
	if _, remote, found := strings.Cut(err.Error(), "remote error: tls: "); found {
		for _, a := range alerts {
			if strings.HasPrefix(remote, a.alert) {
				return a.what, a.hint, true
			}
		}
		return "the server broke the TLS handshake off: " + remote, "the server's log says why", true
	}
	return "", "", false
}
