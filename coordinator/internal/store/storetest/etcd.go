package storetest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Etcd is a real etcd inside a test: one member, in a temporary folder, on Unix
// sockets, with an election that takes 0.1 s. A test can stop it and start it again on
// its data.
type Etcd struct {
	t    testing.TB
	dir  string
	etcd *embed.Etcd
	tls  *transport.TLSInfo // nil: a Unix socket
	port string             // with tls, once it is known
}

// StartEtcd starts an etcd that ends with the test.
func StartEtcd(t testing.TB) *Etcd { return start(t, nil) }

// Host is the address of an etcd with TLS. It is not 127.0.0.1: while the etcd is stopped,
// whoever asks the kernel for a port there could get its.
const Host = "127.0.0.2"

// StartEtcdTLS starts one that listens on [Host] and asks for certificates of a CA.
func StartEtcdTLS(t testing.TB, ca, cert, key string) *Etcd {
	return start(t, &transport.TLSInfo{TrustedCAFile: ca, CertFile: cert, KeyFile: key, ClientCertAuth: true})
}

func start(t testing.TB, tls *transport.TLSInfo) *Etcd {
	t.Helper()
	// Not t.TempDir(): a Unix socket path has at most 108 bytes.
	dir, err := os.MkdirTemp("", "etcd")
	if err != nil {
		t.Fatal(err)
	}
	s := &Etcd{t: t, dir: dir, tls: tls, port: "0"}
	t.Cleanup(func() {
		s.Stop()
		_ = os.RemoveAll(dir)
	})
	s.Up()
	return s
}

// Up starts the server, again if it was stopped.
func (s *Etcd) Up() {
	s.t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(s.dir, "data")
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = false
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	peer, client := s.socket("peer"), s.client()
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	if s.tls != nil {
		cfg.ClientTLSInfo = *s.tls
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		s.t.Fatalf("start etcd: %v", err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(20 * time.Second):
		s.t.Fatal("etcd was not ready within 20 s")
	}
	s.etcd = e
	if s.tls != nil {
		_, s.port, _ = net.SplitHostPort(e.Clients[0].Addr().String())
	}
}

// Stop stops the server at once; its data stays.
func (s *Etcd) Stop() {
	if s.etcd == nil {
		return
	}
	s.etcd.Server.HardStop() // Close alone waits 7 s for clients that are still connected
	s.etcd.Close()
	s.etcd = nil
}

// LoseLeader makes the server one of two members, of which the other was never there:
// it goes on answering its clients, and has no quorum and no leader any more.
func (s *Etcd) LoseLeader() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	if _, err := s.Client().MemberAdd(ctx, []string{"http://127.0.0.1:1"}); err != nil {
		s.t.Fatalf("add a member to etcd: %v", err)
	}
	for s.etcd.Server.Leader() != 0 {
		select {
		case <-ctx.Done():
			s.t.Fatal("etcd kept its leader for 20 s")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Endpoint is what a client dials.
func (s *Etcd) Endpoint() string {
	u := s.client()
	return u.String()
}

// Client is a client that is closed with the test.
func (s *Etcd) Client() *clientv3.Client {
	s.t.Helper()
	cl, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, DialTimeout: 2 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		s.t.Fatalf("dial etcd: %v", err)
	}
	s.t.Cleanup(func() { _ = cl.Close() })
	return cl
}

func (s *Etcd) client() url.URL {
	if s.tls != nil {
		return url.URL{Scheme: "https", Host: net.JoinHostPort(Host, s.port)}
	}
	return s.socket("client")
}

func (s *Etcd) socket(name string) url.URL {
	u, err := url.Parse(fmt.Sprintf("unix://%s/%s:0", s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return *u
}
