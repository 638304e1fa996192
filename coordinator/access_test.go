package coordinator

import (
	"bytes"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/agent/api/access"
	"warmd/agent/api/access/accesstest"
	"warmd/coordinator/api"
	"warmd/coordinator/internal/agenttest"
	"warmd/coordinator/internal/store/storetest"
	"warmd/placement"
)

func TestEveryRouteHasARuleAndEveryRuleARoute(t *testing.T) {
	var routes []string
	for _, rt := range (&Coordinator{}).table() {
		routes = append(routes, rt.method+" "+rt.path)
	}
	slices.Sort(routes)
	require.Equal(t, routes, slices.Sorted(maps.Keys(access.Coordinator.Need)))
}

// said is a log that can be read while it is written.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) { s.mu.Lock(); defer s.mu.Unlock(); return s.text.Write(b) }
func (s *said) String() string              { s.mu.Lock(); defer s.mu.Unlock(); return s.text.String() }

// serveTLS serves an agent with a certificate.
func serveTLS(t *testing.T, a *agenttest.Agent, f access.Files) {
	t.Helper()
	certs, err := access.Load(f, nil)
	require.NoError(t, err)
	srv := httptest.NewUnstartedServer(a.Handler())
	srv.TLS = certs.Server()
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.StartTLS()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	a.Addr = strings.TrimPrefix(srv.URL, "https://")
}

// TestAFleetWithCertificates: the coordinator is called with them, and calls agents by
// their names: an agent that is another one than gossip says gets no claim.
func TestAFleetWithCertificates(t *testing.T) {
	f, out := accesstest.New(t), &said{}
	h := &agenttest.History{}
	good, liar := agenttest.New("n1", 2, h), agenttest.New("n2", 2, h)
	serveTLS(t, good, f.Files(access.UnitAgent, "n1"))
	serveTLS(t, liar, f.Files(access.UnitAgent, "n3"))
	view := agenttest.NewNodes(good, liar).Live()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c, local, _ := startCoordinator(t, "c1", storetest.StartEtcd(t), view, func(cfg *Config, opt *Options) {
		cfg.TLS, cfg.Access = f.Files(access.UnitCoordinator, "c1"), access.Groups{}
		opt.Logger = slog.New(slog.NewTextHandler(out, nil))
		opt.Listeners = append(opt.Listeners, ln)
	})
	as := func(unit string) *api.Client {
		cl, err := api.NewClient("https://"+ln.Addr().String(), accesstest.Transport(t, f.Files(unit, "ada"), "c1", access.UnitCoordinator))
		require.NoError(t, err)
		t.Cleanup(cl.Close)
		return cl
	}
	_, err = as("read").Place(t.Context(), placement.Request{Model: "opt"}, "ready", nil)
	require.Equal(t, placement.CodeForbidden, placement.AsError(err).Code)
	require.ErrorContains(t, err, "POST /v1/placements needs role place")
	_, err = as("etcd").Fleet(t.Context())
	require.Equal(t, placement.CodeForbidden, placement.AsError(err).Code)

	p, err := as("place").Place(t.Context(), placement.Request{Model: "opt"}, "ready", nil)
	require.NoError(t, err)
	require.Equal(t, "n1", p.Node)
	assert.Contains(t, out.String(), "path=/v1/placements status=200 placement="+p.ID)
	_, err = as("admin").SetDrain(t.Context(), "n2", true)
	require.ErrorContains(t, err, "is for n3, not for n2")
	_, err = as("place").SetDrain(t.Context(), "n1", true)
	require.Equal(t, placement.CodeForbidden, placement.AsError(err).Code)
	_, err = as("admin").SetDrain(t.Context(), "n1", false)
	require.NoError(t, err)
	_, err = as("place").Release(t.Context(), p.ID, 0)
	require.NoError(t, err)

	next := c.cfg
	next.TLS, next.Access.Read = f.Files(access.UnitCoordinator, "c2"), []string{"users"}
	require.NoError(t, c.Reload(next))
	_, err = as("read").Fleet(t.Context())
	require.ErrorContains(t, err, "is for c2, not for c1")
	assert.Contains(t, out.String(), `changed="[tls.cert tls.key access.read]"`)
	_, err = local.Status(t.Context())
	require.NoError(t, err, "the Unix socket is as it was")
}

func TestWhatOtherHostsCanReachTakesTLS(t *testing.T) {
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	require.NoError(t, err)
	cfg := DefaultConfig()
	c, err := New(cfg, Options{View: &keyedView{}, Listeners: []net.Listener{ln}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.election.Client.Close() })
	require.ErrorContains(t, c.Run(t.Context()), "tls is missing: ")
	cfg.Listen = []string{"0.0.0.0:7711"}
	_, err = New(cfg, Options{View: &keyedView{}})
	require.ErrorContains(t, err, `listen[0] "0.0.0.0:7711" can be reached from other hosts`)
}

func TestRolesAndRefusalsAreAsDescribed(t *testing.T) {
	doc := openAPI(t)
	doc.Servers = nil
	router, err := gorillamux.NewRouter(doc)
	require.NoError(t, err)
	guard := access.NewGuard(access.Coordinator, access.Groups{}, slog.New(slog.DiscardHandler))
	c := &caller{t, router, guard.Wrap(http.NotFoundHandler())}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			need := access.Coordinator.Need[method+" "+path]
			assert.Equal(t, need.String(), op.Extensions["x-role"], "%s %s", method, path)
			if need > access.None {
				assert.Equal(t, 401, c.call(method, strings.NewReplacer("{id}", "p-1", "{node}", "n1").Replace(path), "").Code)
				assert.NotNil(t, op.Responses.Value("403"))
			}
		}
	}
}
