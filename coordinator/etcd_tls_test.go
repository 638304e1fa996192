package coordinator

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/agent/api/access/accesstest"
	"warmd/agent/api/access/pki"
	"warmd/coordinator/internal/store/storetest"
	"warmd/placement"
)

// etcd is asked over mutual TLS by its address. Its CA changes, the files of the
// coordinator with it, and nobody restarts the coordinator.
func TestEtcdOverTLSAndAChangeOfItsCA(t *testing.T) {
	certs := accesstest.New(t)
	member, own := certs.Files("etcd", "m1", storetest.Host), certs.Files("etcd", "c1")
	etcd := storetest.StartEtcdTLS(t, member.CA, member.Cert, member.Key)
	var cfg Config
	c, client, _ := startCoordinator(t, "c1", etcd, newRig(t, 1).nodes, func(c *Config, _ *Options) {
		c.EtcdCA, c.EtcdCert, c.EtcdKey = own.CA, own.Cert, own.Key
		cfg = *c
	})
	_, err := client.Place(t.Context(), request("req-1"), "ready", nil)
	require.NoError(t, err)

	old := certs.CA
	certs.CA, err = pki.NewAuthority(pki.UnitEtcd, time.Now(), time.Hour)
	require.NoError(t, err)
	certs.Trust(certs.CA, old)
	certs.Files("etcd", "c1")
	certs.Files("etcd", "m1", storetest.Host)
	certs.Trust(certs.CA)
	etcd.Stop()
	etcd.Up()
	require.Eventually(t, func() bool {
		_, err := client.Place(t.Context(), request("req-2"), "ready", nil)
		return err == nil
	}, 15*time.Second, 50*time.Millisecond)

	// As `systemctl reload` does it: other files are taken, files that make no sense are not.
	cfg.EtcdKey = own.CA
	require.ErrorContains(t, c.Reload(cfg), "etcd_key")
	cfg.EtcdKey = own.Key
	require.NoError(t, c.Reload(cfg))
}

func TestEtcdsFilesAreNamedByTheirOwnKeys(t *testing.T) {
	cfg := DefaultConfig()
	cfg.EtcdCA = "/etc/warmd/tls/etcd-ca.crt"
	err := cfg.Validate()
	for _, want := range []string{"etcd_cert", "etcd_key", "etcd_endpoints[0] \"http://127.0.0.1:2379\" must begin with https"} {
		assert.ErrorContains(t, err, want)
	}
	cfg = DefaultConfig()
	cfg.Endpoints, cfg.EtcdCA, cfg.EtcdCert, cfg.EtcdKey = []string{"https://e1:2379"}, "/nonexistent/ca", "/nonexistent/crt", "/nonexistent/key"
	_, err = New(cfg, Options{View: &keyedView{}})
	assert.ErrorContains(t, err, "etcd_ca /nonexistent/ca does not exist")
	assert.Equal(t, placement.CodeBadRequest, placement.AsError(err).Code)
}
