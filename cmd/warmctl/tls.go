package main

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	agentapi "warmd/agent/api"
	"warmd/agent/api/access"
	"warmd/placement"
)

// Which certificate we show. Each of the three files is the first that is named:
//
//  1. --tls-ca, --tls-cert, --tls-key
//  2. $WARMD_TLS_CA, $WARMD_TLS_CERT, $WARMD_TLS_KEY
//  3. ca.crt, client.crt and client.key in ~/.config/warmd/tls, if that folder is there
//  4. the same in /etc/warmd/tls
const tlsHelp = `Over https a client certificate is shown; its OU is the role. The files are the first of
--tls-ca, --tls-cert, --tls-key, then $WARMD_TLS_CA, $WARMD_TLS_CERT, $WARMD_TLS_KEY, then
  ~/.config/warmd/tls/{ca.crt,client.crt,client.key}
  /etc/warmd/tls/{ca.crt,client.crt,client.key}
host:port without a scheme means https, unless the host is this one.`

// tlsFile is one of the three, and what named it.
type tlsFile struct{ key, flag, env, name, path, given string }

// tlsFiles applies the rule.
func (c *call) tlsFiles() []tlsFile {
	files := []tlsFile{
		{key: "tls.ca", flag: "tls-ca", env: "WARMD_TLS_CA", name: "ca.crt"},
		{key: "tls.cert", flag: "tls-cert", env: "WARMD_TLS_CERT", name: "client.crt"},
		{key: "tls.key", flag: "tls-key", env: "WARMD_TLS_KEY", name: "client.key"},
	}
	dir := c.tlsDir()
	for i := range files {
		f := &files[i]
		if f.path, f.given = c.flags.String(f.flag), "--"+f.flag; f.path != "" {
			continue
		}
		if f.path, f.given = c.Getenv(f.env), f.env; f.path != "" {
			continue
		}
		f.path, f.given = filepath.Join(dir, f.name), ""
	}
	return files
}

// tlsDir is the folder of those files that nothing names.
func (c *call) tlsDir() string {
	if home := c.Getenv("HOME"); home != "" {
		own := filepath.Join(home, ".config/warmd/tls")
		if _, err := os.Stat(own); err == nil {
			return own
		}
	}
	return filepath.Join(c.Host, "etc/warmd/tls")
}

// connect says how to call an address: with TLS or without, and by whose name.
func (c *call) connect(a address, unit string) (addr string, rt http.RoundTripper, err error) {
	addr = a.addr
	if strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, "./") {
		return addr, nil, nil
	}
	if !strings.Contains(addr, "://") {
		if !elsewhere(addr) {
			return addr, nil, nil
		}
		addr = "https://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return addr, nil, nil // agentapi.NewConn says what is wrong with it
	}
	certs, err := c.certificates()
	if err != nil {
		return addr, nil, err
	}
	return addr, agentapi.NewTransport(certs.Client(u.Hostname(), unit)), nil
}

// elsewhere reports whether host:port is on another host: those have no plain port.
func elsewhere(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host != "localhost" && host != ""
	}
	return !ip.Unmap().IsLoopback()
}

// certificates reads the files. A certificate that cannot do is refused before it is
// shown to anybody: no server could say as clearly what is wrong with it.
func (c *call) certificates() (*access.Certificates, error) {
	files := c.tlsFiles()
	for i := range files {
		abs, err := filepath.Abs(files[i].path)
		if err != nil {
			return nil, err
		}
		files[i].path = abs
		if _, err := os.Stat(abs); files[i].given == "" && errors.Is(err, os.ErrNotExist) {
			return nil, placement.Errorf(placement.CodeUnauthorized, "https takes a client certificate, and there is no %s", abs).
				WithHint("who runs the fleet makes one (warmctl pki issue read NAME); put ca.crt, client.crt and client.key there, or name them with --tls-ca, --tls-cert and --tls-key")
		}
	}
	certs, err := access.Load(access.Files{CA: files[0].path, Cert: files[1].path, Key: files[2].path}, nil)
	if err == nil {
		err = certs.Problem()
	}
	if err == nil {
		return certs, nil
	}
	e := placement.Errorf(placement.CodeUnauthorized, "%v", err)
	if f, ok := errors.AsType[*placement.FieldError](err); ok {
		e.Message = f.Problem
		for _, file := range files {
			if file.key == f.Field && file.given != "" {
				e.Message = file.given + ": " + f.Problem
			}
		}
	}
	switch {
	case strings.Contains(e.Message, "clock"):
		e.Hint = "check the clock (timedatectl), or have the certificate replaced: warmctl pki issue"
	case strings.Contains(e.Message, "may not be read"):
		e.Hint = "the key belongs to one user: take a certificate of your own, in ~/.config/warmd/tls"
	default:
		e.Hint = "warmctl pki show FILE says what a file holds"
	}
	return nil, e
}
