package nspawn

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
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
	tls   *etcdTLS
}

// etcdTLS names files on every host, and what this process uses itself.
type etcdTLS struct {
	ca, cert, key string
	client        *tls.Config
}

// startEtcd runs an etcd member on each host until the end of the test. program is
// a file on the hosts, or one of this machine that is copied there.
func startEtcd(t testing.TB, hosts []*host.Host, program string, files *etcdTLS) *etcdCluster {
	t.Helper()
	c := &etcdCluster{hosts: hosts, tls: files}
	if program != debianEtcd {
		for _, h := range hosts {
			h.Copy(t, program, "/usr/local/bin/etcd", 0o755)
		}
		program = "/usr/local/bin/etcd"
	}
	scheme, flags := "http", ""
	if files != nil {
		scheme = "https"
		for _, side := range []string{"", "peer-"} {
			flags += fmt.Sprintf(" --%strusted-ca-file=%s --%scert-file=%s --%skey-file=%s --%sclient-cert-auth", side, files.ca, side, files.cert, side, files.key, side)
		}
	}
	var members []string
	for _, h := range hosts {
		members = append(members, h.Name+"="+scheme+"://"+h.Name+":2380")
	}
	for _, h := range hosts {
		h.Write(t, "/run/systemd/system/"+etcdUnit, fmt.Sprintf(`[Service]
Type=notify
StateDirectory=etcd-test
ExecStart=%s --name=%s --data-dir=/var/lib/etcd-test/data --initial-cluster=%s --initial-cluster-state=new --initial-cluster-token=%s \
  --listen-peer-urls=%[5]s://%[6]s:2380 --initial-advertise-peer-urls=%[5]s://%[2]s:2380 \
  --listen-client-urls=%[5]s://%[6]s:2379 --advertise-client-urls=%[5]s://%[2]s:2379%[7]s
`, program, h.Name, strings.Join(members, ","), "hosts", scheme, h.Addr, flags), 0o644)
		t.Cleanup(func() {
			h.Run(t, "systemctl kill -s KILL "+etcdUnit+" 2>/dev/null; systemctl stop "+etcdUnit+"; rm -rf /var/lib/etcd-test /run/systemd/system/"+etcdUnit+" /usr/local/bin/etcd; systemctl daemon-reload")
		})
		h.Run(t, "systemctl daemon-reload; systemctl start --no-block "+etcdUnit)
	}
	for _, h := range hosts {
		h.WaitUnit(t, etcdUnit, "active", 30*time.Second)
	}
	return c
}

func (c *etcdCluster) endpoints() (urls []string) {
	scheme := "http"
	if c.tls != nil {
		scheme = "https"
	}
	for _, h := range c.hosts {
		urls = append(urls, scheme+"://"+h.Name+":2379")
	}
	return urls
}

// client is a client from outside the fleet that is closed with the test.
func (c *etcdCluster) client(t testing.TB) *clientv3.Client {
	t.Helper()
	cfg := clientv3.Config{
		Endpoints: c.endpoints(), DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return lab.Dial(ctx, "tcp", addr) })},
	}
	if c.tls != nil {
		cfg.TLS = c.tls.client
	}
	cl, err := clientv3.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

func TestEtcdOfThreeMembersSurvivesTheLossOfOne(t *testing.T) {
	for name, program := range map[string]string{"Debian's": debianEtcd, "current": currentEtcd(t)} {
		t.Run(name, func(t *testing.T) {
			hosts := three(t)
			cluster := startEtcd(t, hosts, program, nil)
			cl := cluster.client(t)
			put := func(value string) error {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				_, err := cl.Put(ctx, "/test", value)
				return err
			}
			require.NoError(t, put("before"))
			status, err := cl.Status(t.Context(), "http://h1:2379")
			require.NoError(t, err)
			t.Logf("etcd %s", status.Version)
			hosts[0].Run(t, "systemctl kill -s KILL "+etcdUnit)
			took := host.Until(t, 15*time.Second, "write without the first member", func() error { return put("after") })
			t.Logf("wrote again after %s", took)
		})
	}
}
