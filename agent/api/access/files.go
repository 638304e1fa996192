package access

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"warmd/agent/api/access/pki"
	"warmd/placement"
)

// Files are the files of mutual TLS, in PEM; the table [tls] of a configuration. CA may
// hold several: both are trusted while one takes the other's place.
type Files struct {
	CA   string `toml:"ca"`
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
	// Under is what stands before ca, cert and key in the names of their keys, for
	// errors. Default: "tls.".
	Under string `toml:"-"`
}

// Empty says that there is no TLS.
func (f Files) Empty() bool { return f.CA == "" && f.Cert == "" && f.Key == "" }

// Validate checks the form; every error is a *placement.FieldError.
func (f Files) Validate() error {
	if f.Empty() {
		return nil
	}
	var errs []error
	for _, p := range f.each() {
		switch {
		case p.path == "":
			errs = append(errs, f.wrong(p.key, "is missing: TLS takes all of ca, cert and key"))
		case !filepath.IsAbs(p.path):
			errs = append(errs, f.wrong(p.key, "%q must be an absolute path", p.path))
		}
	}
	return errors.Join(errs...)
}

// Probe reads files of the right form and says what is wrong with them, or with their
// time.
func (f Files) Probe() error {
	if f.Empty() || f.Validate() != nil {
		return nil
	}
	m, err := read(f)
	if err != nil {
		return err
	}
	return m.problem(time.Now())
}

type file struct{ key, path string }

func (f Files) each() [3]file { return [3]file{{"ca", f.CA}, {"cert", f.Cert}, {"key", f.Key}} }

// wrong is an error about one of the files.
func (f Files) wrong(key, format string, args ...any) error {
	return &placement.FieldError{Field: cmp.Or(f.Under, "tls.") + key, Problem: fmt.Sprintf(format, args...)}
}

// lookEvery is how often the files are looked at, at most: with a handshake.
const lookEvery = time.Second

// Certificates are Files that have been read, and are read again when they change:
// replacing a certificate, or a CA, needs no restart. New files that make no sense
// (written half, a key that belongs to another certificate) leave the old ones in use.
type Certificates struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	files  Files
	looked time.Time
	stamp  [3]stamp
	cur    *material
	failed string // why the files as they are now are not in use
}

// stamp tells a file from the one that took its place.
type stamp struct {
	size   int64
	mod    time.Time
	inode  uint64
	absent bool
}

// material is one consistent set.
type material struct {
	files Files
	cas   []*x509.Certificate
	pool  *x509.CertPool
	pair  tls.Certificate
}

// Load reads the files. The error is a *placement.FieldError that names tls.ca, tls.cert
// or tls.key. A certificate outside its time is no error: see [Certificates.Problem].
func Load(f Files, log *slog.Logger) (*Certificates, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := f.Validate(); err != nil {
		return nil, err
	}
	c := &Certificates{log: log, now: time.Now}
	if err := c.Reload(f); err != nil {
		return nil, err
	}
	if err := c.Problem(); err != nil {
		log.Error("our certificate will be refused", "error", err)
	}
	return c, nil
}

// CanTake reports whether Reload takes other files into use. TLS cannot be begun, nor
// ended, while a server runs.
func (c *Certificates) CanTake(f Files) bool { return c != nil && !f.Empty() }

// Check reads files that Reload is going to take.
func (c *Certificates) Check(f Files) error {
	if !c.CanTake(f) {
		return nil
	}
	_, err := read(f)
	return err
}

// Reload takes other files, or looks at the same ones at once. After an error the old
// ones stay in use.
func (c *Certificates) Reload(f Files) error {
	if !c.CanTake(f) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := stamps(f)
	m, err := read(f)
	if err != nil {
		return err
	}
	c.files, c.looked, c.stamp, c.cur, c.failed = f, c.now(), s, m, ""
	return nil
}

// Problem says that our own certificate has expired, or is not valid yet.
func (c *Certificates) Problem() error {
	m := c.current()
	return m.problem(c.now())
}

// Leaf is our own certificate.
func (c *Certificates) Leaf() *x509.Certificate { return c.current().pair.Leaf }

// current is what to use now.
func (c *Certificates) current() *material {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if now.Sub(c.looked) < lookEvery {
		return c.cur
	}
	c.looked = now
	s := stamps(c.files)
	if s == c.stamp && c.failed == "" {
		return c.cur
	}
	m, err := read(c.files)
	if err == nil && c.cur.problem(now) == nil {
		err = m.problem(now) // the old certificate is of more use
	}
	switch {
	case err == nil:
		c.cur, c.stamp, c.failed = m, s, ""
		c.log.Info("certificates replaced", "cert", c.files.Cert, "name", m.pair.Leaf.Subject.CommonName, "serial", m.pair.Leaf.SerialNumber.Text(16),
			"until", m.pair.Leaf.NotAfter, "authorities", len(m.cas))
	case err.Error() != c.failed || s != c.stamp:
		c.stamp, c.failed = s, err.Error()
		c.log.Error("new certificate files are not used, the old ones stay", "error", err)
	}
	return c.cur
}

// read reads a set and checks that it is one.
func read(f Files) (*material, error) {
	var text [3][]byte
	for i, p := range f.each() {
		b, err := os.ReadFile(p.path)
		if err != nil {
			return nil, f.wrong(p.key, "%v", readProblem(err))
		}
		text[i] = b
	}
	m := &material{files: f, pool: x509.NewCertPool()}
	var err error
	if m.cas, err = pki.ParseCerts(text[0]); err != nil {
		return nil, f.wrong("ca", "%s: %v", f.CA, err)
	}
	for _, ca := range m.cas {
		m.pool.AddCert(ca)
	}
	if _, err := pki.ParseCerts(text[1]); err != nil {
		return nil, f.wrong("cert", "%s: %v", f.Cert, err)
	}
	if m.pair, err = tls.X509KeyPair(text[1], text[2]); err != nil {
		if strings.Contains(err.Error(), "does not match") {
			return nil, f.wrong("key", "%s does not belong to the certificate in %s", f.Key, f.Cert)
		}
		return nil, f.wrong("key", "%s: %s", f.Key, strings.TrimPrefix(err.Error(), "tls: "))
	}
	opt := x509.VerifyOptions{Roots: m.pool, Intermediates: intermediates(m.pair), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: m.pair.Leaf.NotBefore.Add(time.Second)}
	if _, err := m.pair.Leaf.Verify(opt); err != nil {
		return nil, f.wrong("cert", "%s is signed by %q, which %s does not hold", f.Cert, m.pair.Leaf.Issuer.CommonName, f.CA)
	}
	return m, nil
}

// readProblem is an error of os.ReadFile in the words of an operator.
func readProblem(err error) error {
	p, ok := errors.AsType[*os.PathError](err)
	switch {
	case !ok:
		return err
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s does not exist", p.Path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s may not be read by user %s", p.Path, userName(os.Geteuid()))
	}
	return fmt.Errorf("%s: %w", p.Path, p.Err)
}

func intermediates(pair tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			pool.AddCert(c)
		}
	}
	return pool
}

// problem says that a certificate is outside its time.
func (m *material) problem(now time.Time) error {
	if err := OutsideItsTime(m.pair.Leaf, now); err != nil {
		return m.files.wrong("cert", "%s %v", m.files.Cert, err)
	}
	return nil
}

// OutsideItsTime says that a certificate has expired, or is not valid yet.
func OutsideItsTime(c *x509.Certificate, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("expired at %s; this host's clock says %s", clock(c.NotAfter), clock(now))
	case now.Before(c.NotBefore):
		return fmt.Errorf("is valid from %s on, and this host's clock says %s: one of the clocks is wrong", clock(c.NotBefore), clock(now))
	}
	return nil
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func stamps(f Files) (out [3]stamp) {
	for i, p := range f.each() {
		fi, err := os.Stat(p.path)
		if err != nil {
			out[i].absent = true
			continue
		}
		out[i] = stamp{size: fi.Size(), mod: fi.ModTime()}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			out[i].inode = st.Ino
		}
	}
	return out
}
