package nspawn

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"warmd/packaging/nspawn/host"
)

// debianEtcd is the program that Debian ships; the current one is built by make.
const debianEtcd = "/usr/bin/etcd"

func currentEtcd(t testing.TB) string {
	t.Helper()
	path := os.Getenv("WARMD_TEST_ETCD")
	if path == "" {
		t.Fatal("WARMD_TEST_ETCD is not set: run `make test-hosts`, which builds etcd")
	}
	return path
}

// etcdUnit is the unit of one member on its host.
const etcdUnit = "etcd-test.service"

// etcdCluster is a real etcd with one member on each host.
type etcdCluster struct {
	hosts []*host.Host
	certs *certificates
}

// startEtcd runs an etcd member on each host until remove. program is a file on the
// hosts, or one of this machine that is copied there.
func startEtcd(t testing.TB, hosts []*host.Host, program string, certs *certificates) *etcdCluster {
	t.Helper()
	c := &etcdCluster{hosts: hosts, certs: certs}
	if program != debianEtcd {
		each(t, hosts, func(h *host.Host) { h.Copy(t, program, "/usr/local/bin/etcd", 0o755) })
		program = "/usr/local/bin/etcd"
	}
	scheme, flags := "http", ""
	if certs != nil {
		scheme = "https"
		for _, side := range []string{"", "peer-"} {
			flags += fmt.Sprintf(" --%strusted-ca-file=%s --%scert-file=%s --%skey-file=%s --%sclient-cert-auth", side, etcdCA, side, etcdCert, side, etcdKey, side)
		}
	}
	var members []string
	for _, h := range hosts {
		members = append(members, h.Name+"="+scheme+"://"+h.Name+":2380")
	}
	for _, h := range hosts {
		h.Write(t, "/etc/systemd/system/"+etcdUnit, fmt.Sprintf(`[Unit]
StartLimitIntervalSec=0
[Install]
WantedBy=multi-user.target
[Service]
Type=notify
Restart=always
RestartSec=500ms
StateDirectory=etcd-test
ExecStart=%s --name=%s --data-dir=/var/lib/etcd-test/data --initial-cluster=%s --initial-cluster-state=new --initial-cluster-token=%s --log-level=warn --pre-vote \
  --listen-peer-urls=%[5]s://%[6]s:2380 --initial-advertise-peer-urls=%[5]s://%[2]s:2380 \
  --listen-client-urls=%[5]s://%[6]s:2379 --advertise-client-urls=%[5]s://%[2]s:2379%[7]s
`, program, h.Name, strings.Join(members, ","), "hosts", scheme, h.Addr, flags), 0o644)
		h.Run(t, "systemctl daemon-reload; systemctl enable -q --now --no-block "+etcdUnit)
	}
	for _, h := range hosts {
		h.WaitUnit(t, etcdUnit, "active", 30*time.Second)
	}
	return c
}

// remove ends the members at once and takes their data along.
func (c *etcdCluster) remove(t testing.TB) {
	t.Helper()
	for _, h := range c.hosts {
		h.Run(t, "systemctl kill -s KILL "+etcdUnit+" 2>/dev/null; systemctl disable -q --now "+etcdUnit+"; systemctl reset-failed "+etcdUnit+
			" 2>/dev/null; rm -rf /var/lib/etcd-test /etc/systemd/system/"+etcdUnit+" /usr/local/bin/etcd; systemctl daemon-reload")
	}
}

func (c *etcdCluster) endpoints() (urls []string) {
	scheme := "http"
	if c.certs != nil {
		scheme = "https"
	}
	for _, h := range c.hosts {
		urls = append(urls, scheme+"://"+h.Name+":2379")
	}
	return urls
}

// client is a client from outside the fleet, of all members or of some.
func (c *etcdCluster) client(t testing.TB, members ...*node) *clientv3.Client {
	t.Helper()
	endpoints := c.endpoints()
	if len(members) > 0 {
		endpoints = nil
		for i, h := range c.hosts {
			if slices.ContainsFunc(members, func(n *node) bool { return n.Host == h }) {
				endpoints = append(endpoints, c.endpoints()[i])
			}
		}
	}
	cfg := clientv3.Config{
		Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return lab.Dial(ctx, "tcp", addr) })},
	}
	if c.certs != nil {
		cfg.TLS = c.certs.etcdClient()
	}
	cl, err := clientv3.New(cfg)
	require.NoError(t, err)
	return cl
}
