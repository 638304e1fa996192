package access

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

// logBook is a log that tests can read.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// audits are the audit lines so far.
func (l *logBook) audits(t *testing.T) (out []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(l.b.Bytes()) {
		var v map[string]any
		require.NoError(t, json.Unmarshal(line, &v))
		if v["audit"] == true {
			out = append(out, v)
		}
	}
	return out
}

func (l *logBook) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

// guarded serves an agent's routes, all of which answer "ok", behind a guard.
func guarded(t *testing.T, network string, g *Guard) net.Addr {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "wacc")
		require.NoError(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		require.NoError(t, os.Chmod(dir, 0o755))
		addr = filepath.Join(dir, "s")
	}
	ln, err := net.Listen(network, addr)
	require.NoError(t, err)
	if network == "unix" {
		require.NoError(t, os.Chmod(addr, 0o666)) // the guard decides here, not the socket's mode
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })}
	g.Protect(srv)
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return ln.Addr()
}

func TestRootAndTheServersOwnUserAreAdmin(t *testing.T) {
	book := &logBook{}
	g := NewGuard(Agent, Groups{}, book.logger())
	for _, network := range []string{"unix", "tcp"} {
		at := guarded(t, network, g)
		require.Equal(t, "200 ok", askAs(t, nil, at, "POST /v1/drain"), network)
		require.Equal(t, "200 ok", askAs(t, nil, at, "GET /no/such/route"), network)
	}
	lines := book.audits(t)
	require.Len(t, lines, 4)
	require.Equal(t, "admin", lines[0]["role"])
	require.Contains(t, lines[0]["who"], "uid="+strconv.Itoa(os.Geteuid())+"(")
	require.Equal(t, []any{"unix", "unix", "tcp", "tcp"}, []any{lines[0]["via"], lines[1]["via"], lines[2]["via"], lines[3]["via"]})
}

// TestGroupsOfAProcessGiveItsRole asks with real credentials. Root takes those of a
// stranger; anybody else has only their own, and a guard that is not theirs.
func TestGroupsOfAProcessGiveItsRole(t *testing.T) {
	const stranger, place, admin = 54321, 54322, 54323
	for _, c := range []struct {
		gid    int
		groups []uint32
		target string
		status string
	}{
		{stranger, nil, "GET /healthz", "200"},
		{stranger, nil, "GET /v1/node", "403"},
		{stranger, nil, "GET /metrics", "403"},
		{place, nil, "GET /v1/node", "200"},
		{stranger, []uint32{1, place}, "PUT /v1/placements/p-1", "200"},
		{stranger, []uint32{1, place}, "POST /v1/drain", "403"},
		{stranger, []uint32{place, admin}, "POST /v1/drain", "200"},
		{stranger, []uint32{place}, "GET /v1/unheard/of", "403"},
	} {
		book := &logBook{}
		groups := Groups{Place: []string{strconv.Itoa(place)}, Admin: []string{strconv.Itoa(admin)}}
		cred := &syscall.Credential{Uid: stranger, Gid: uint32(c.gid), Groups: c.groups}
		if os.Geteuid() != 0 {
			cred = nil
			groups = Groups{}
			if c.gid == place || len(c.groups) > 1 && c.groups[1] == place {
				groups.Place = []string{strconv.Itoa(os.Getegid())}
			} else if len(c.groups) > 1 {
				groups.Admin = []string{strconv.Itoa(os.Getegid())}
			}
		}
		g := NewGuard(Agent, groups, book.logger())
		g.uid = -1
		got := askAs(t, cred, guarded(t, "unix", g), c.target)
		require.Equal(t, c.status, got[:3], "%+v: %s", c, got)
		if c.status == "403" {
			lines := book.audits(t)
			require.Len(t, lines, 1, "%+v", c)
			require.Equal(t, "refused", lines[0]["msg"])
			require.Equal(t, 403.0, lines[0]["status"])
			require.NotZero(t, lines[0]["peer_pid"])
		}
	}
}

func TestALoopbackPortIsNoWayAroundTheGroups(t *testing.T) {
	book := &logBook{}
	g := NewGuard(Agent, Groups{Admin: []string{strconv.Itoa(os.Getegid())}}, book.logger())
	g.uid = -1
	if os.Geteuid() == 0 {
		got := askAs(t, &syscall.Credential{Uid: 54321, Gid: 54321}, guarded(t, "tcp", g), "GET /v1/node")
		require.Contains(t, got, "403 ")
		require.Contains(t, got, "uid=54321(54321) has role none")
		require.Contains(t, got, "usermod")
		return
	}
	require.Equal(t, "200 ok", askAs(t, nil, guarded(t, "tcp", g), "POST /v1/drain"))
}

func TestAClosedSocketBelongsToNobody(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	s, err := ln.Accept()
	require.NoError(t, err)
	defer s.Close()
	p, err := tcpPeer(s.LocalAddr(), s.RemoteAddr())
	require.NoError(t, err)
	require.Equal(t, os.Geteuid(), p.UID)
	require.NoError(t, c.Close())
	_, err = tcpPeer(s.LocalAddr(), s.RemoteAddr())
	require.ErrorIs(t, err, errNobody, "the kernel lists it with uid 0 now: that is not root")
	_, err = tcpPeer(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 2})
	require.ErrorIs(t, err, errNobody)
}

func TestSixIsLoopbackToo(t *testing.T) {
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil { // a host without IPv6 cannot be asked over it
		require.ErrorContains(t, err, "cannot assign requested address")
		return
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	s, err := ln.Accept()
	require.NoError(t, err)
	defer s.Close()
	p, err := tcpPeer(s.LocalAddr(), s.RemoteAddr())
	require.NoError(t, err)
	require.Equal(t, os.Geteuid(), p.UID)
}

// certified is a request that came with a verified certificate.
func certified(method, path string, units ...string) *http.Request {
	r := httptest.NewRequest(method, path, nil)
	cert := &x509.Certificate{Subject: pkix.Name{CommonName: "ada", OrganizationalUnit: units}}
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert}}}
	return r
}

func TestTheUnitOfACertificateIsItsRole(t *testing.T) {
	for _, c := range []struct {
		server Server
		units  []string
		want   Role
	}{
		{Agent, []string{"read"}, Read}, {Agent, []string{"place"}, Place}, {Agent, []string{"admin"}, Admin},
		{Agent, []string{"coordinator"}, Admin}, {Agent, []string{"agent"}, Read}, {Agent, []string{"etcd"}, None},
		{Agent, nil, None}, {Agent, []string{"none"}, None}, {Agent, []string{"Admin"}, None}, {Agent, []string{"read", "admin"}, Admin},
		{Coordinator, []string{"coordinator"}, Read}, {Coordinator, []string{"agent"}, Read}, {Coordinator, []string{"place"}, Place},
	} {
		g := NewGuard(c.server, DefaultGroups(), slog.New(slog.DiscardHandler))
		require.Equal(t, c.want, g.roleOf(peerOf(certified("GET", "/", c.units...))), "%v", c.units)
	}
}

func TestACertificateThatNobodyVerifiedIsNone(t *testing.T) {
	r := certified("GET", "/", "admin")
	r.TLS.VerifiedChains = nil
	g := NewGuard(Agent, DefaultGroups(), slog.New(slog.DiscardHandler))
	require.Equal(t, None, g.roleOf(peerOf(r)))
}

// answer sends a request through a guard to a handler.
func answer(g *Guard, r *http.Request, h http.HandlerFunc) (int, *placement.Error) {
	w := httptest.NewRecorder()
	g.Wrap(h).ServeHTTP(w, r)
	e := new(placement.Error)
	_ = json.Unmarshal(w.Body.Bytes(), e)
	return w.Code, e
}

func TestARefusalSaysWhatIsMissingAndLeavesALine(t *testing.T) {
	book := &logBook{}
	g := NewGuard(Coordinator, DefaultGroups(), book.logger())
	never := func(http.ResponseWriter, *http.Request) { t.Error("a refused request got through") }

	status, e := answer(g, certified("DELETE", "/v1/placements/p-1", "read"), never)
	require.Equal(t, 403, status)
	require.Equal(t, placement.CodeForbidden, e.Code)
	require.Equal(t, "DELETE /v1/placements/p-1 needs role place: the certificate of CN=ada,OU=read has role read", e.Message)
	require.Contains(t, e.Hint, "warmctl pki issue place NAME")

	status, e = answer(g, httptest.NewRequest("GET", "/v1/capacity", nil), never)
	require.Equal(t, 401, status)
	require.Equal(t, placement.CodeUnauthorized, e.Code)

	local := httptest.NewRequest("POST", "/v1/nodes/n1/drain", nil)
	local = local.WithContext(context.WithValue(local.Context(), connKey{}, &conn{peer: Peer{Via: "unix", UID: 54321, PID: 7}}))
	status, e = answer(g, local, never)
	require.Equal(t, 403, status)
	require.Equal(t, "members of group warmd-admin may: sudo usermod -aG warmd-admin 54321, then log in again", e.Hint)
	g.SetGroups(Groups{})
	_, e = answer(g, local, never)
	require.Contains(t, e.Hint, "[access] admin in its configuration names no group")

	lines := book.audits(t)
	require.Len(t, lines, 4)
	for i, want := range []map[string]any{
		{"who": "CN=ada,OU=read", "role": "read", "method": "DELETE", "path": "/v1/placements/p-1", "status": 403.0, "placement": "p-1", "level": "WARN"},
		{"who": "unknown", "role": "none", "status": 401.0, "placement": nil},
		{"who": "uid=54321(54321)", "role": "none", "peer_pid": 7.0, "path": "/v1/nodes/n1/drain"},
	} {
		for k, v := range want {
			require.Equal(t, v, lines[i][k], "%s of %v", k, lines[i])
		}
	}
}

func TestCallsThatChangeSomethingLeaveALineWithStatusAndPlacement(t *testing.T) {
	book := &logBook{}
	g := NewGuard(Coordinator, DefaultGroups(), book.logger())
	_, _ = answer(g, certified("POST", "/v1/placements", "place"), func(w http.ResponseWriter, r *http.Request) {
		Concerns(r.Context(), "p-9")
		w.WriteHeader(201)
		require.Len(t, book.audits(t), 1, "the line is there before the answer has ended")
	})
	_, _ = answer(g, certified("DELETE", "/v1/placements/p-8", "place"), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) })
	_, _ = answer(g, certified("DELETE", "/v1/placements/p-7", "place"), func(http.ResponseWriter, *http.Request) {})
	_, _ = answer(g, certified("GET", "/v1/capacity", "place"), func(http.ResponseWriter, *http.Request) {})
	require.Panics(t, func() {
		_, _ = answer(g, certified("POST", "/v1/nodes/n/drain", "admin"), func(http.ResponseWriter, *http.Request) { panic("oh") })
	})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = answer(g, certified("DELETE", "/v1/placements/p-6", "place").WithContext(gone), func(http.ResponseWriter, *http.Request) {})
	var got [][]any
	for _, l := range book.audits(t) {
		got = append(got, []any{l["status"], l["placement"], l["level"]})
	}
	require.Equal(t, [][]any{{201.0, "p-9", "INFO"}, {404.0, "p-8", "INFO"}, {200.0, "p-7", "INFO"}, {500.0, nil, "INFO"}, {499.0, "p-6", "INFO"}}, got)
}

func TestGroupsMayChangeWhileConnectionsAreOpen(t *testing.T) {
	g := NewGuard(Agent, Groups{Read: []string{"54321"}}, slog.New(slog.DiscardHandler))
	p := Peer{Via: "unix", UID: 99, GIDs: []int{5, 54321}}
	require.Equal(t, Read, g.roleOf(p))
	g.SetGroups(Groups{Read: []string{"54321"}, Admin: []string{"5"}})
	require.Equal(t, Admin, g.roleOf(p))
	g.SetGroups(Groups{Read: []string{"no-such-group-here"}})
	require.Equal(t, None, g.roleOf(p))
}

func TestAConnectionOverTLSIsNotUsedForEver(t *testing.T) {
	g := NewGuard(Agent, DefaultGroups(), slog.New(slog.DiscardHandler))
	for age, want := range map[time.Duration]string{time.Minute: "", connLife + time.Second: "close"} {
		r := certified("GET", "/v1/node", "read")
		r = r.WithContext(context.WithValue(r.Context(), connKey{}, &conn{since: time.Now().Add(-age)}))
		w := httptest.NewRecorder()
		g.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
		require.Equal(t, want, w.Header().Get("Connection"))
	}
}

func TestWhatIsNoGroupIsNamed(t *testing.T) {
	require.NoError(t, DefaultGroups().Validate())
	err := Groups{Place: []string{"ok", "not ok"}}.Validate()
	require.EqualError(t, err, `access.place[1] "not ok" must be the name of a group`)
}

func TestRolesAreOrderedWords(t *testing.T) {
	require.True(t, None < Read && Read < Place && Place < Admin)
	for _, r := range []Role{Read, Place, Admin} {
		got, err := ParseRole(r.String())
		require.NoError(t, err)
		require.Equal(t, r, got)
	}
	for _, s := range []string{"", "none", "ADMIN", "root"} {
		_, err := ParseRole(s)
		require.Error(t, err, s)
	}
}

func TestFailedHandshakesAreAuditedWithoutAFlood(t *testing.T) {
	book := &logBook{}
	l := handshakeLog(book.logger())
	l.Print("http: TLS handshake error from 10.0.0.9:4711: EOF")
	l.Print("http: superfluous response.WriteHeader call")
	for range 100 {
		l.Print("http: TLS handshake error from 10.0.0.9:4711: tls: client didn't provide a certificate")
	}
	lines := book.audits(t)
	require.Len(t, lines, handshakeLines)
	require.Equal(t, "10.0.0.9:4711", lines[0]["from"])
	require.Equal(t, "tls: client didn't provide a certificate", lines[0]["reason"])
}
