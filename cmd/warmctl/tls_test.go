package main

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v2"

	agentapi "warmd/agent/api"
	"warmd/agent/api/access"
	"warmd/agent/api/access/accesstest"
	"warmd/agent/api/access/pki"
)

// overTLS serves a fake's routes as a real server does: TLS, and the guard before
// them. It returns host:port.
func overTLS(t *testing.T, f *fake, role access.Server, files access.Files) string {
	t.Helper()
	certs, err := access.Load(files, nil)
	require.NoError(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	name := "coordinator"
	if _, local := role.Need["GET /v1/node"]; local {
		name = "agent"
	}
	srv := agentapi.NewServer(f.routes(name), slog.New(slog.DiscardHandler))
	access.NewGuard(role, access.Groups{}, slog.New(slog.DiscardHandler)).Protect(srv)
	srv.TLSConfig = certs.Server()
	done := make(chan struct{})
	go func() { defer close(done); _ = agentapi.Serve(t.Context(), srv, time.Second, ln) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return ln.Addr().String()
}

// flagsOf are the three flags that name files.
func flagsOf(f access.Files) []string {
	return []string{"--tls-ca=" + f.CA, "--tls-cert=" + f.Cert, "--tls-key=" + f.Key}
}

func TestACertificateIsFoundByFlagEnvironmentAndFolder(t *testing.T) {
	f, fleet := newFake(t), accesstest.New(t)
	at := "https://" + overTLS(t, f, access.Coordinator, fleet.Files("coordinator", "c1", "127.0.0.1"))
	mine := fleet.Files("read", "ada")

	got := warmctl(t, testConsole(), append(flagsOf(mine), "--server", at, "ps")...)
	require.Equal(t, exitOK, got.code, got.err)
	got = warmctl(t, testConsole("WARMD_SERVER", at, "WARMD_TLS_CA", mine.CA, "WARMD_TLS_CERT", mine.Cert, "WARMD_TLS_KEY", mine.Key), "ps")
	require.Equal(t, exitOK, got.code, got.err)

	home, root := t.TempDir(), t.TempDir()
	put := func(dir string) {
		require.NoError(t, os.MkdirAll(dir, 0o755))
		for name, from := range map[string]string{"ca.crt": mine.CA, "client.crt": mine.Cert, "client.key": mine.Key} {
			b, err := os.ReadFile(from)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
		}
	}
	con := testConsole("WARMD_SERVER", at, "HOME", home)
	con.Host = root
	got = warmctl(t, con, "ps")
	require.Equal(t, exitDenied, got.code)
	require.Contains(t, got.err, "https takes a client certificate, and there is no "+root+"/etc/warmd/tls/ca.crt")
	require.Contains(t, got.err, "warmctl pki issue read NAME")
	put(filepath.Join(root, "etc/warmd/tls"))
	got = warmctl(t, con, "ps")
	require.Equal(t, exitOK, got.code, got.err)
	require.NoError(t, os.RemoveAll(filepath.Join(root, "etc")))
	put(filepath.Join(home, ".config/warmd/tls"))
	got = warmctl(t, con, "ps")
	require.Equal(t, exitOK, got.code, got.err)
}

func TestARoleThatIsTooLowIsSaidWithWhatToDo(t *testing.T) {
	f, fleet := newFake(t), accesstest.New(t)
	coordinator := "https://" + overTLS(t, f, access.Coordinator, fleet.Files("coordinator", "c1", "127.0.0.1"))
	agent := "https://" + overTLS(t, f, access.Agent, fleet.Files("agent", "n1", "127.0.0.1"))
	for unit, want := range map[string]map[string]int{
		"read":  {"ps": 0, "place /models/x": exitDenied, "release p-aaa1": exitDenied, "drain n1 --no-wait": exitDenied},
		"place": {"ps": 0, "release p-aaa1": 0, "drain n1 --no-wait": exitDenied},
		"admin": {"ps": 0, "drain n1 --no-wait": 0},
		"other": {"ps": exitDenied},
	} {
		mine := fleet.Files(unit, "ada")
		for line, code := range want {
			got := warmctl(t, testConsole(), append(append(flagsOf(mine), "--server", coordinator), strings.Fields(line)...)...)
			require.Equal(t, code, got.code, "%s %s: %s", unit, line, got.err)
			if code == exitDenied {
				require.Contains(t, got.err, "the certificate of CN=ada,OU="+unit+" has role")
				require.Contains(t, got.err, "  try: take a certificate with OU=")
			}
		}
	}
	got := warmctl(t, testConsole(), append(flagsOf(fleet.Files("admin", "ada")), "--agent", agent, "drain", "n1", "--no-wait")...)
	require.Equal(t, exitOK, got.code, got.err)
	got = warmctl(t, testConsole(), append(flagsOf(fleet.Files("read", "ada")), "--agent", agent, "drain", "n1", "--no-wait", "-o", "json")...)
	require.Equal(t, exitDenied, got.code)
	require.Contains(t, got.err, `"code":"forbidden"`)
}

func TestEveryFailureOfTLSIsSaidInWords(t *testing.T) {
	f, fleet, stranger := newFake(t), accesstest.New(t), accesstest.New(t)
	at := overTLS(t, f, access.Coordinator, fleet.Files("coordinator", "c1", "127.0.0.1"))
	unnamed := overTLS(t, f, access.Coordinator, fleet.Files("coordinator", "c2"))
	mine, other := fleet.Files("read", "ada"), fleet.Files("read", "bob")
	leaf := pki.Leaf{Name: "old", Unit: "read", Client: true, Life: time.Hour}
	plain := strings.TrimPrefix(f.coordinator.URL, "http://")
	for name, c := range map[string]struct {
		addr       string
		files      access.Files
		says, hint string
	}{
		"a file that is not there":    {"https://" + at, access.Files{CA: mine.CA, Cert: "/nonexistent/x.crt", Key: mine.Key}, "--tls-cert: /nonexistent/x.crt does not exist", "warmctl pki show"},
		"another certificate's key":   {"https://" + at, access.Files{CA: mine.CA, Cert: mine.Cert, Key: other.Key}, "--tls-key: " + other.Key + " does not belong to the certificate in", "warmctl pki show"},
		"ours has expired":            {"https://" + at, fleet.Issue(leaf, time.Now().Add(-3*time.Hour)), "expired at ", "timedatectl"},
		"ours is of the future":       {"https://" + at, fleet.Issue(pki.Leaf{Name: "new", Unit: "read", Client: true, Life: time.Hour}, time.Now().Add(3*time.Hour)), "one of the clocks is wrong", "timedatectl"},
		"ours is not of our CA":       {"https://" + at, access.Files{CA: stranger.Files("read", "x").CA, Cert: mine.Cert, Key: mine.Key}, "which " + stranger.Dir + "/ca.crt does not hold", "warmctl pki show"},
		"the server's is of another":  {"https://" + at, stranger.Files("read", "ada"), "is signed by \"warmd CA ", "take the fleet's CA file"},
		"the server has another name": {"https://" + unnamed, mine, "(CN=c2,OU=coordinator) is for c2, not for 127.0.0.1", "--address 127.0.0.1"},
		"plain HTTP to TLS":           {"http://" + at, mine, "the server at http://" + at + " speaks TLS", "call https://" + at},
		"TLS to plain HTTP":           {"https://" + plain, mine, "the server speaks plain HTTP, not TLS", "http://"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append(flagsOf(c.files), "--server", c.addr, "place", "/models/x")
			got := warmctl(t, testConsole(), args...)
			require.Equal(t, exitDenied, got.code, got.err)
			require.Contains(t, got.err, c.says)
			require.Contains(t, got.err, "  try: ")
			require.Contains(t, got.err, c.hint)
			require.NotContains(t, got.err, "the connection broke", "nothing was sent that could be followed")
		})
	}
	got := warmctl(t, testConsole(), append(flagsOf(mine), "--agent", "https://"+at, "workers")...)
	require.Equal(t, exitDenied, got.code)
	require.Contains(t, got.err, "is not that of a server of kind agent")

	// A server that trusts another CA than the one that signed us: it is the one that refuses.
	two := accesstest.New(t)
	two.Trust(two.CA, fleet.CA) // our CA file has both
	both := access.Files{CA: filepath.Join(two.Dir, "ca.crt"), Cert: two.Files("read", "ada").Cert, Key: filepath.Join(two.Dir, "read-ada.key")}
	got = warmctl(t, testConsole(), append(flagsOf(both), "--server", "https://"+at, "ps")...)
	require.Equal(t, exitDenied, got.code)
	require.Contains(t, got.err, "the server does not know the CA that signed our certificate")
}

func TestAnAddressOfAnotherHostMeansTLS(t *testing.T) {
	for addr, want := range map[string]bool{
		"gpu1:7711": true, "10.0.0.1:7711": true, "[fe80::1]:7711": true, "https://127.0.0.1:1": true,
		"127.0.0.1:7711": false, "localhost:7711": false, "[::1]:7711": false, "http://gpu1:7711": false, "unix:///run/x": false, "/run/x": false, "./x": false, ":7711": false,
	} {
		app := &cli.App{Flags: globalFlags(), Action: func(c *cli.Context) error {
			k := &call{console: testConsole(), flags: c}
			_, rt, err := k.connect(address{addr: addr}, access.UnitAgent)
			require.Nil(t, rt)
			require.Equal(t, want, err != nil, "%s: %v", addr, err) // there are no certificates here
			return nil
		}}
		require.NoError(t, app.Run([]string{"warmctl"}))
	}
}

func TestDoctorLooksAtCertificates(t *testing.T) {
	fleet, h := accesstest.New(t), newHost(t)
	h.host.now = time.Now
	none := []tlsFile{{path: "/none"}, {path: "/none"}, {path: "/none"}}
	require.Empty(t, h.host.checkCertificates(none))
	put := func(f access.Files) {
		for name, from := range map[string]string{"ca.crt": f.CA, "agent.crt": f.Cert, "agent.key": f.Key} {
			b, err := os.ReadFile(from)
			require.NoError(t, err)
			h.file("/etc/warmd/tls/"+name, string(b))
		}
	}
	agent := pki.Leaf{Name: "gpu1", Unit: "agent", Server: true, Client: true, Life: 24 * time.Hour}
	put(fleet.Issue(agent, time.Now()))
	require.Contains(t, one(t, h.host.checkCertificates(none)), "warning: ")
	require.Contains(t, one(t, h.host.checkCertificates(none)), "(CN=gpu1,OU=agent) ends in 0 days")
	put(fleet.Issue(agent, time.Now().Add(-30*time.Hour)))
	require.Contains(t, one(t, h.host.checkCertificates(none)), "broken: ")
	require.Contains(t, one(t, h.host.checkCertificates(none)), "expired at ")
	put(fleet.Issue(agent, time.Now().Add(3*time.Hour)))
	require.Contains(t, one(t, h.host.checkCertificates(none)), "one of the clocks is wrong")
	wrong := fleet.Issue(agent, time.Now())
	wrong.CA = accesstest.New(t).Files("agent", "x").CA
	put(wrong)
	require.Contains(t, one(t, h.host.checkCertificates(none)), "is signed by \"warmd CA ")
	wrong = fleet.Issue(agent, time.Now())
	wrong.Key = fleet.Files("agent", "other").Key
	put(wrong)
	require.Contains(t, one(t, h.host.checkCertificates(none)), "do not belong together")
	h.file("/etc/warmd/tls/agent.crt", "x")
	require.Contains(t, one(t, h.host.checkCertificates(none)), "no PEM certificate")
}
