package access_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/api/access"
	"warmd/agent/api/access/accesstest"
	"warmd/agent/api/access/pki"
)

// book is a log that tests can read.
type book struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *book) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *book) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *book) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// serve runs a guarded agent over TLS and returns its address.
func serve(t *testing.T, certs *access.Certificates, log *slog.Logger) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })}
	access.NewGuard(access.Agent, access.Groups{}, log).Protect(srv)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(tls.NewListener(ln, certs.Server())) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return ln.Addr().String()
}

func load(t *testing.T, f access.Files, log *slog.Logger) *access.Certificates {
	t.Helper()
	c, err := access.Load(f, log)
	require.NoError(t, err)
	return c
}

// get asks for the node; the answer is the status, or what Explain makes of the error.
func get(t *testing.T, tr *http.Transport, url string) (status int, what, hint string) {
	t.Helper()
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(url + "/v1/node")
	if err != nil {
		what, hint, ok := access.Explain(err)
		require.True(t, ok, "no explanation of %v", err)
		return 0, what, hint
	}
	resp.Body.Close()
	return resp.StatusCode, "", ""
}

func TestBothSidesShowACertificate(t *testing.T) {
	f := accesstest.New(t)
	at := "https://" + serve(t, load(t, f.Files("agent", "gpu1"), nil), slog.New(slog.DiscardHandler))
	for unit, want := range map[string]int{"read": 200, "place": 200, "admin": 200, "coordinator": 200, "agent": 200, "etcd": 403, "": 403} {
		status, what, _ := get(t, accesstest.Transport(t, f.Files(unit, "x"), "gpu1", "agent"), at)
		require.Equal(t, want, status, "%s %s", unit, what)
	}
}

func TestWhatIsWrongWithAServersCertificateIsSaid(t *testing.T) {
	f, stranger := accesstest.New(t), accesstest.New(t)
	ours := f.Files("read", "ada")
	now := time.Now()
	agent := pki.Leaf{Name: "gpu1", Unit: "agent", Addresses: []string{"10.1.2.3"}, Server: true, Client: true, Life: time.Hour}
	for name, c := range map[string]struct {
		files      access.Files
		call       string
		what, hint string
	}{
		"expired":       {f.Issue(agent, now.Add(-3*time.Hour)), "gpu1", "(CN=gpu1,OU=agent) expired at ", "warmctl pki issue agent gpu1"},
		"not yet valid": {f.Issue(withName(agent, "gpu2"), now.Add(3*time.Hour)), "gpu2", "one of the clocks is wrong", "timedatectl"},
		"another CA":    {stranger.Issue(agent, now), "gpu1", `is signed by "warmd CA `, "somebody else answers there"},
		"another name":  {f.Issue(withName(agent, "gpu3"), now), "gpu9", "is for gpu3, 10.1.2.3, not for gpu9", "warmctl pki issue agent gpu3 --address gpu9"},
		"another kind":  {f.Issue(pki.Leaf{Name: "gpu4", Unit: "admin", Server: true, Life: time.Hour}, now), "gpu4", "(CN=gpu4,OU=admin) is not that of a server of kind agent", "OU=agent"},
		"for clients":   {f.Issue(pki.Leaf{Name: "gpu5", Unit: "agent", Client: true, Life: time.Hour}, now), "gpu5", "is refused: x509: certificate specifies an incompatible key usage", ""},
	} {
		t.Run(name, func(t *testing.T) {
			at := serve(t, load(t, c.files, nil), slog.New(slog.DiscardHandler))
			status, what, hint := get(t, accesstest.Transport(t, ours, c.call, "agent"), "https://"+at)
			require.Zero(t, status)
			require.Contains(t, what, c.what)
			require.Contains(t, hint, c.hint)
		})
	}
}

func withName(l pki.Leaf, name string) pki.Leaf { l.Name = name; return l }

func TestAnAddressIsANameToo(t *testing.T) {
	f := accesstest.New(t)
	at := serve(t, load(t, f.Files("agent", "gpu1", "127.0.0.1"), nil), slog.New(slog.DiscardHandler))
	status, what, _ := get(t, accesstest.Transport(t, f.Files("read", "ada"), "127.0.0.1", "agent"), "https://"+at)
	require.Equal(t, 200, status, what)
}

func TestACallerWithoutAGoodCertificateIsTurnedAwayAndAudited(t *testing.T) {
	f, stranger := accesstest.New(t), accesstest.New(t)
	log := &book{}
	at := serve(t, load(t, f.Files("agent", "gpu1"), nil), log.logger())
	now := time.Now()
	read := pki.Leaf{Name: "ada", Unit: "read", Client: true, Life: time.Hour}
	for name, c := range map[string]struct {
		files access.Files
		what  string
		log   string
	}{
		"of another CA": {stranger.Issue(read, now), "the server does not know the CA that signed our certificate", "certificate signed by unknown authority"},
		"expired":       {f.Issue(read, now.Add(-3*time.Hour)), "the server says that our certificate has expired", "certificate has expired or is not yet valid"},
		"for servers":   {f.Issue(pki.Leaf{Name: "bob", Unit: "read", Server: true, Life: time.Hour}, now), "the server refuses our certificate", "incompatible key usage"},
	} {
		want := c.what
		t.Run(name, func(t *testing.T) {
			c := load(t, c.files, nil)
			trust := load(t, f.Files("read", "trust"), nil).Client("gpu1", "agent")
			trust.GetClientCertificate = c.Client("gpu1", "agent").GetClientCertificate
			tr := &http.Transport{TLSClientConfig: trust}
			status, what, hint := get(t, tr, "https://"+at)
			require.Zero(t, status)
			require.Equal(t, want, what)
			require.NotEmpty(t, hint)
		})
		require.Eventually(t, func() bool { return strings.Contains(log.String(), c.log) }, 5*time.Second, time.Millisecond, c.log)
	}
	none := load(t, f.Files("read", "trust"), nil).Client("gpu1", "agent")
	none.GetClientCertificate = nil
	_, what, hint := get(t, &http.Transport{TLSClientConfig: none}, "https://"+at)
	require.Equal(t, "the server wants a client certificate, and there is none", what)
	require.Contains(t, hint, "--tls-cert")
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "client didn't provide a certificate") }, 5*time.Second, time.Millisecond)
	for line := range strings.Lines(log.String()) {
		require.Contains(t, line, "audit=true")
	}
}

func TestPlainHTTPAndTLSDoNotMix(t *testing.T) {
	f := accesstest.New(t)
	at := serve(t, load(t, f.Files("agent", "gpu1"), nil), slog.New(slog.DiscardHandler))
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://" + at + "/healthz")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, 400, resp.StatusCode)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	plain := &http.Server{}
	go func() { _ = plain.Serve(ln) }()
	defer plain.Close()
	_, what, _ := get(t, accesstest.Transport(t, f.Files("read", "ada"), "gpu1", "agent"), "https://"+ln.Addr().String())
	require.Equal(t, "the server speaks plain HTTP, not TLS", what)
}

func TestWhatIsWrongWithOurFilesIsSaid(t *testing.T) {
	f, stranger := accesstest.New(t), accesstest.New(t)
	good, other, foreign := f.Files("agent", "gpu1"), f.Files("agent", "gpu2"), stranger.Files("agent", "gpu1")
	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for want, files := range map[string]access.Files{
		"tls.key is missing":                         {CA: good.CA, Cert: good.Cert},
		`tls.ca "ca.crt" must be an absolute path`:   {CA: "ca.crt", Cert: good.Cert, Key: good.Key},
		"tls.cert " + f.Dir + "/none does not exist": {CA: good.CA, Cert: f.Dir + "/none", Key: good.Key},
		"tls.key " + f.Dir + ": ":                    {CA: good.CA, Cert: good.Cert, Key: f.Dir},
		"no PEM certificate in it":                   {CA: empty, Cert: good.Cert, Key: good.Key},
		"tls.cert " + empty:                          {CA: good.CA, Cert: empty, Key: good.Key},
		"tls.key " + empty:                           {CA: good.CA, Cert: good.Cert, Key: empty},
		"agent-gpu2.key does not belong to":          {CA: good.CA, Cert: good.Cert, Key: other.Key},
		"which " + good.CA + " does not hold":        {CA: good.CA, Cert: foreign.Cert, Key: foreign.Key},
	} {
		_, err := access.Load(files, nil)
		require.ErrorContains(t, err, want)
	}
	require.NoError(t, access.Files{}.Validate())

	log := &book{}
	c := load(t, f.Issue(pki.Leaf{Name: "old", Unit: "agent", Server: true, Client: true, Life: time.Hour}, time.Now().Add(-3*time.Hour)), log.logger())
	require.ErrorContains(t, c.Problem(), "expired at")
	require.Contains(t, log.String(), "our certificate will be refused")
	c = load(t, f.Issue(pki.Leaf{Name: "new", Unit: "agent", Server: true, Client: true, Life: time.Hour}, time.Now().Add(3*time.Hour)), log.logger())
	require.ErrorContains(t, c.Problem(), "one of the clocks is wrong")
}

func TestFilesAreLookedAtOnceASecondAndBadOnesLeaveTheOldOnesInUse(t *testing.T) {
	f := accesstest.New(t)
	files := f.Files("agent", "gpu1")
	now := time.Now()
	log := &book{}
	c := load(t, files, log.logger())
	c.SetClock(func() time.Time { return now })
	first := c.Leaf().SerialNumber
	tick := func() { now = now.Add(1100 * time.Millisecond) }

	f.Files("agent", "gpu1")
	require.Equal(t, first, c.Leaf().SerialNumber, "not looked at again yet")
	tick()
	second := c.Leaf().SerialNumber
	require.NotEqual(t, first, second)
	require.Contains(t, log.String(), "certificates replaced")

	key, err := os.ReadFile(files.Key)
	require.NoError(t, err)
	for bad, says := range map[string]string{"": "failed to find any PEM data", string(key[:40]): "failed to find any PEM data"} {
		require.NoError(t, os.WriteFile(files.Key, []byte(bad), 0o600))
		tick()
		require.Equal(t, second, c.Leaf().SerialNumber)
		require.Contains(t, log.String(), says)
	}
	require.NoError(t, os.Remove(files.Key))
	tick()
	require.Equal(t, second, c.Leaf().SerialNumber)
	tick()
	require.Equal(t, second, c.Leaf().SerialNumber)
	require.Equal(t, 1, strings.Count(log.String(), "agent-gpu1.key does not exist"), "said once")

	f.Issue(pki.Leaf{Name: "gpu1", Unit: "agent", Server: true, Client: true, Life: time.Hour}, now.Add(2*time.Hour))
	tick()
	require.Equal(t, second, c.Leaf().SerialNumber)
	require.Contains(t, log.String(), "one of the clocks is wrong")
	now = now.Add(119 * time.Minute)
	require.NotEqual(t, second, c.Leaf().SerialNumber, "its time has come, with no file changed")

	stranger, err := pki.NewAuthority(pki.UnitFleet, now, time.Hour)
	require.NoError(t, err)
	f.Trust(stranger)
	tick()
	_ = c.Leaf()
	require.Contains(t, log.String(), "does not hold", "a CA file that would cut us off is not taken")
	require.Error(t, c.Reload(files))
	f.Trust(f.CA, stranger)
	require.NoError(t, c.Reload(files))
}
