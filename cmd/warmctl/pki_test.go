package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/api/access"
)

// shop is a folder of CAs and a console with a clock that is right.
type shop struct {
	t   *testing.T
	dir string
	con console
}

func newShop(t *testing.T) *shop {
	s := &shop{t: t, dir: filepath.Join(t.TempDir(), "pki"), con: testConsole()}
	s.con.Now = time.Now
	return s
}

// do runs pki and returns what it printed; it must succeed.
func (s *shop) do(args ...string) string {
	s.t.Helper()
	got := warmctl(s.t, s.con, append([]string{"pki", "--dir", s.dir}, args...)...)
	require.Equal(s.t, exitOK, got.code, got.err)
	return got.out
}

// fails runs pki and returns its error.
func (s *shop) fails(args ...string) string {
	s.t.Helper()
	got := warmctl(s.t, s.con, append([]string{"pki"}, args...)...)
	require.NotEqual(s.t, exitOK, got.code)
	return got.err
}

func (s *shop) files(stem, ca string) access.Files {
	at := func(name string) string { return filepath.Join(s.dir, name) }
	return access.Files{CA: at(ca), Cert: at(stem + ".crt"), Key: at(stem + ".key")}
}

func TestCertificatesOfPKIMakeAFleet(t *testing.T) {
	s, f := newShop(t), newFake(t)
	s.do("init")
	s.do("issue", "agent", "n1", "--address", "127.0.0.1")
	s.do("issue", "coordinator", "c1", "--address", "127.0.0.1", "--address", "c1.example.org")
	coordinator := "https://" + overTLS(t, f, access.Coordinator, s.files("coordinator-c1", "ca.crt"))
	agent := "https://" + overTLS(t, f, access.Agent, s.files("agent-n1", "ca.crt"))
	for _, role := range []string{"read", "place", "admin"} {
		out := s.do("issue", role, "ada", "--address", "127.0.0.1")
		require.Contains(t, out, "CN=ada,OU="+role+" for ada, 127.0.0.1, until ")
		mine := flagsOf(s.files(role+"-ada", "ca.crt"))
		for _, line := range [][]string{{"--server", coordinator, "ps"}, {"--agent", agent, "workers"}} {
			got := warmctl(t, testConsole(), append(mine, line...)...)
			require.Equal(t, exitOK, got.code, got.err)
		}
		got := warmctl(t, testConsole(), append(mine, "--server", coordinator, "drain", "n1", "--no-wait")...)
		require.Equal(t, map[string]int{"read": exitDenied, "place": exitDenied, "admin": exitOK}[role], got.code, got.err)
	}
	// The agent's certificate is no coordinator's, and a person's is no server's.
	got := warmctl(t, testConsole(), append(flagsOf(s.files("admin-ada", "ca.crt")), "--server", agent, "ps")...)
	require.Contains(t, got.err, "is not that of a server of kind coordinator")
	person := "https://" + overTLS(t, f, access.Agent, s.files("read-ada", "ca.crt"))
	got = warmctl(t, testConsole(), append(flagsOf(s.files("admin-ada", "ca.crt")), "--agent", person, "workers")...)
	require.Contains(t, got.err, "incompatible key usage")
}

func TestEtcdHasACAOfItsOwn(t *testing.T) {
	s := newShop(t)
	s.do("init")
	s.do("issue", "etcd", "e1", "--address", "10.0.0.1")
	s.do("issue", "coordinator", "c1")
	s.do("issue", "read", "ada")
	for stem, ca := range map[string]string{"etcd-e1": "etcd-ca.crt", "coordinator-c1-etcd": "etcd-ca.crt", "coordinator-c1": "ca.crt", "read-ada": "ca.crt"} {
		_, err := access.Load(s.files(stem, ca), nil)
		require.NoError(t, err, stem)
		wrong := map[string]string{"ca.crt": "etcd-ca.crt", "etcd-ca.crt": "ca.crt"}[ca]
		_, err = access.Load(s.files(stem, wrong), nil)
		require.ErrorContains(t, err, "does not hold", stem)
	}
	var e []shown
	require.NoError(t, json.Unmarshal([]byte(warmctl(t, s.con, "pki", "show", filepath.Join(s.dir, "etcd-e1.crt"), "-o", "json").out), &e))
	require.Equal(t, []string{"server", "client"}, e[0].Uses)
	require.Equal(t, []string{"e1", "10.0.0.1"}, e[0].Names)
	require.NoError(t, json.Unmarshal([]byte(warmctl(t, s.con, "pki", "show", filepath.Join(s.dir, "coordinator-c1-etcd.crt"), "-o", "json").out), &e))
	require.Equal(t, []string{"client"}, e[0].Uses)
}

func TestKeysAreSecretAndNothingIsOverwrittenUnasked(t *testing.T) {
	s := newShop(t)
	s.do("init")
	s.do("issue", "agent", "n1")
	for name, mode := range map[string]os.FileMode{".": 0o700 | os.ModeDir, "ca.key": 0o600, "etcd-ca.key": 0o600, "agent-n1.key": 0o600, "ca.crt": 0o644, "agent-n1.crt": 0o644} {
		fi, err := os.Stat(filepath.Join(s.dir, name))
		require.NoError(t, err)
		require.Equal(t, mode, fi.Mode(), name)
	}
	before, err := os.ReadFile(filepath.Join(s.dir, "agent-n1.key"))
	require.NoError(t, err)
	require.Contains(t, s.fails("init", s.dir), "holds a CA already")
	require.Contains(t, s.fails("issue", "agent", "n1", "--dir", s.dir), "agent-n1.key is there already")
	after, err := os.ReadFile(filepath.Join(s.dir, "agent-n1.key"))
	require.NoError(t, err)
	require.Equal(t, before, after)
	s.do("issue", "agent", "n1", "--force")
	after, err = os.ReadFile(filepath.Join(s.dir, "agent-n1.key"))
	require.NoError(t, err)
	require.NotEqual(t, before, after)
	left, err := filepath.Glob(filepath.Join(s.dir, "*.new"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestWhatPKICannotDoIsSaid(t *testing.T) {
	s := newShop(t)
	for want, args := range map[string][]string{
		"holds no CA: ca.crt and ca.key are not both there": {"issue", "agent", "n1", "--dir", s.dir},
		`"root" is no kind of certificate`:                  {"issue", "root", "n1"},
		`--address "h:1" must be an IP address`:             {"issue", "agent", "n1", "--address", "h:1"},
		`name "../n1" must match`:                           {"issue", "agent", "../n1"},
		`--days "ten" must be a whole number`:               {"issue", "agent", "n1", "--days", "ten"},
		`--days "0" must be`:                                {"init", "--days", "0", s.dir},
		"pki takes init [DIR]":                              {"issue", "agent"},
		"pki init takes no --address":                       {"init", "--address", "h"},
		"no such file":                                      {"show", "/nonexistent/x.crt"},
		"no CA that another could stand beside":             {"init", "--add", s.dir},
	} {
		require.Contains(t, s.fails(args...), want)
	}
	s.do("init")
	require.Contains(t, s.fails("show", filepath.Join(s.dir, "ca.key")), "is a private key")
	s.do("init", "--add")
	require.Contains(t, s.fails("init", "--add", s.dir), "a change is under way")
}

func TestShowSaysWhoAndHowLong(t *testing.T) {
	s := newShop(t)
	s.do("init")
	s.do("issue", "agent", "n1", "--address", "10.0.0.1", "--days", "90")
	out := s.do("init", "--add")
	require.Contains(t, out, "both CAs are trusted")
	got := warmctl(t, s.con, "pki", "show", filepath.Join(s.dir, "ca.crt"))
	require.Equal(t, 2, strings.Count(got.out, "kind       CA of warmd\n"))
	got = warmctl(t, s.con, "pki", "show", filepath.Join(s.dir, "agent-n1.crt"))
	for _, line := range []string{"name       n1\n", "kind       agent\n", "names      n1, 10.0.0.1\n", "for        server, client\n", "signed by  warmd CA ", ", 89 days left\n"} {
		require.Contains(t, got.out, line)
	}
	late := s.con
	late.Now = func() time.Time { return time.Now().Add(100 * 24 * time.Hour) }
	got = warmctl(t, late, "pki", "show", filepath.Join(s.dir, "agent-n1.crt"))
	require.Contains(t, got.out, "problem    expired at ")
}

// TestACAIsChangedInThreeSteps: at each of them, who has the new files and who has
// those of the step before understand each other.
func TestACAIsChangedInThreeSteps(t *testing.T) {
	s, f := newShop(t), newFake(t)
	s.do("init")
	copyOf := func(name string) access.Files { // the files as they are now
		dir := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.CopyFS(dir, os.DirFS(s.dir)))
		return access.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	}
	issue := func() (server, client access.Files) {
		s.do("issue", "coordinator", "c1", "--address", "127.0.0.1", "--force")
		s.do("issue", "read", "ada", "--force")
		return copyOf("coordinator-c1"), copyOf("read-ada")
	}
	var servers, clients []access.Files
	add := func(server, client access.Files) { servers, clients = append(servers, server), append(clients, client) }
	add(issue())
	s.do("init", "--add")
	add(copyOf("coordinator-c1"), copyOf("read-ada"))
	add(issue())
	s.do("retire")
	add(copyOf("coordinator-c1"), copyOf("read-ada"))
	for i, server := range servers {
		at := "https://" + overTLS(t, f, access.Coordinator, server)
		for j, client := range clients {
			got := warmctl(t, testConsole(), append(flagsOf(client), "--server", at, "ps")...)
			if i-j <= 1 && j-i <= 1 {
				require.Equal(t, exitOK, got.code, "server at step %d, client at step %d: %s", i, j, got.err)
			}
		}
	}
	got := warmctl(t, testConsole(), append(flagsOf(clients[0]), "--server", "https://"+overTLS(t, f, access.Coordinator, servers[3]), "ps")...)
	require.Equal(t, exitDenied, got.code, "the old CA is gone")
	_, err := os.Stat(filepath.Join(s.dir, "ca-old.key"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
