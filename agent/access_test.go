package agent

import (
	"log/slog"
	"maps"
	"net"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/agent/api"
	"warmd/agent/api/access"
	"warmd/agent/api/access/accesstest"
	"warmd/placement"
)

func TestEveryRouteHasARuleAndEveryRuleARoute(t *testing.T) {
	require.Equal(t, slices.Sorted(maps.Keys((&Agent{metrics: &metrics{}}).routes())), slices.Sorted(maps.Keys(access.Agent.Need)))
}

// over makes a client of the node's TCP port with a certificate of its own.
func (n *node) over(f access.Files, name string) *api.Client {
	n.t.Helper()
	c, err := api.NewClient("https://"+n.agent.Addr(), accesstest.Transport(n.t, f, name, access.UnitAgent))
	require.NoError(n.t, err)
	n.t.Cleanup(c.Close)
	return c
}

func TestTheFleetPortTakesCertificatesAndTheirRoles(t *testing.T) {
	t.Parallel()
	f, out := accesstest.New(t), &said{}
	n := newNode(t, func(c *Config) { c.Listen, c.TLS = []string{"127.0.0.1:0"}, f.Files(access.UnitAgent, "n1") })
	n.opt.Logger = slog.New(slog.NewTextHandler(out, nil))
	n.start()

	read := n.over(f.Files("read", "ada"), "n1")
	st, err := read.Node(t.Context())
	require.NoError(t, err)
	require.Equal(t, "n1", st.Capacity.Node)
	_, err = read.SetDrain(t.Context(), true)
	require.Equal(t, placement.CodeForbidden, placement.AsError(err).Code)
	require.Contains(t, out.take(), `level=WARN msg=refused audit=true who="CN=ada,OU=read" role=read via=tls method=POST path=/v1/drain status=403`)

	err = n.over(f.Files("place", "bob"), "n1").Place(t.Context(), "p-1", claimOf(1, placement.Request{Model: "tiny"}), func(placement.Progress) bool { return true })
	require.NoError(t, err)
	require.Contains(t, out.take(), `audit=true who="CN=bob,OU=place" role=place via=tls method=PUT path=/v1/placements/p-1 status=200 placement=p-1`)
	_, err = n.over(f.Files(access.UnitCoordinator, "c1"), "n1").SetDrain(t.Context(), false)
	require.NoError(t, err, "a coordinator is admin")

	for what, c := range map[string]*api.Client{
		"is for n1, not for n2": n.over(f.Files("read", "ada"), "n2"),
		"which is not in":       n.over(accesstest.New(t).Files("read", "ada"), "n1"),
	} {
		_, err = c.Node(t.Context())
		require.Equal(t, placement.CodeUnavailable, placement.AsError(err).Code)
		require.ErrorContains(t, err, what)
	}
	plain, err := api.NewClient(n.agent.Addr(), nil)
	require.NoError(t, err)
	defer plain.Close()
	_, err = plain.Node(t.Context())
	require.ErrorContains(t, err, "speaks TLS")
	_, err = n.client.Node(t.Context())
	require.NoError(t, err, "the Unix socket is as it was")
}

func TestWhatOtherHostsCanReachTakesTLS(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	require.NoError(t, err)
	n := newNode(t, nil)
	n.opt.Listeners = []net.Listener{ln}
	_, err = New(n.cfg, n.opt)
	require.ErrorContains(t, err, "tls is missing: ")
	require.ErrorContains(t, err, "set tls.ca, tls.cert and tls.key")
	_ = ln.Close()
	n.opt.Listeners = nil
	for _, addr := range []string{":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:7710", "gpu1:7710"} {
		n.cfg.Listen = []string{"127.0.0.1:0", addr}
		_, err = New(n.cfg, n.opt)
		require.ErrorContains(t, err, "listen[1] ", addr)
		require.ErrorContains(t, err, "set tls.ca, tls.cert and tls.key")
	}
	n.cfg.TLS = accesstest.New(t).Files("agent", "n1")
	n.cfg.TLS.Key = "/nonexistent/agent.key"
	_, err = New(n.cfg, n.opt)
	require.ErrorContains(t, err, "tls.key /nonexistent/agent.key does not exist")
}

func TestAReloadTakesGroupsAndCertificates(t *testing.T) {
	t.Parallel()
	f, out := accesstest.New(t), &said{}
	n := newNode(t, func(c *Config) { c.Listen, c.TLS = []string{"127.0.0.1:0"}, f.Files("agent", "n1") })
	n.opt.Logger = slog.New(slog.NewTextHandler(out, nil))
	n.start()
	client := n.over(f.Files("read", "ada"), "elsewhere")
	_, err := client.Node(t.Context())
	require.ErrorContains(t, err, "not for elsewhere")

	cfg := n.cfg
	cfg.Access.Read = []string{"users"}
	cfg.TLS = f.Files("agent", "elsewhere")
	out.take()
	require.NoError(t, n.agent.Reload(cfg))
	require.Contains(t, out.take(), `changed="[tls.cert tls.key access.read]"`)
	_, err = client.Node(t.Context())
	require.NoError(t, err)

	bad := cfg
	bad.TLS.Key = n.cfg.TLS.Key
	require.ErrorContains(t, n.agent.Reload(bad), "tls.key ")
	bad.TLS = access.Files{}
	require.NoError(t, n.agent.Reload(bad))
	require.Contains(t, out.take(), `msg="needs a restart" keys="[tls.ca tls.cert tls.key]"`)
	_, err = client.Node(t.Context())
	require.NoError(t, err)
}
