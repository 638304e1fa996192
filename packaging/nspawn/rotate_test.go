package nspawn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

// rotatedGossipKeys changes the key of the gossip, as man warmd-agent.toml says.
func rotatedGossipKeys(t *testing.T, f *fleet) {
	before, stream, views := f.processes(t), f.stream(t, f.id("gk")), f.watchViews(t)
	old, next := f.nodes[0].Run(t, "cat /etc/warmd/gossip-agent.keys"), newGossipKey()
	for _, keys := range [][]string{{old, next}, {next, old}, {next}} {
		writeGossipKeys(t, f.hosts(), keys...)
		f.each(t, func(n *node) { n.Run(t, "systemctl reload warmd-agent.service "+coordinatorUnit) })
	}
	// Whoever knows the old key only is not heard any more: the others have really changed.
	outsider := f.nodes[2]
	time.Sleep(2 * time.Second) // a probe of everybody, with the new key alone
	assert.Zero(t, views.Stop().Failed(), "%s", views)
	told := stream.Stop()
	assert.Equal(t, before, f.processes(t), "nothing was restarted")
	writeGossipKeys(t, []*host.Host{outsider.Host}, old)
	outsider.Run(t, "systemctl reload warmd-agent.service "+coordinatorUnit)
	f.untilLost(t, outsider, time.Now())
	writeGossipKeys(t, []*host.Host{outsider.Host}, next)
	outsider.Run(t, "systemctl reload warmd-agent.service "+coordinatorUnit)
	f.each(t, func(n *node) { f.untilCoordinates(t, n) })
	f.prove(t, f.id("gk"), told)
}

// rotatedCertificates changes both CAs and every certificate, as `warmctl pki --help` says.
func rotatedCertificates(t *testing.T, f *fleet) {
	before, stream, views := f.processes(t), f.stream(t, f.id("ce")), f.watchCalls(t, func(placement.Fleet) bool { return true })
	former := f.certs.byRole["admin"]
	authority := f.issuer(t)
	step := func(command string, bring func(*host.Host)) {
		f.certs.desk.Run(t, "cd /root/pki && warmctl pki "+command)
		each(t, f.hosts(), bring)
		f.certs.load(t)
		for _, n := range f.nodes { // new connections, with what is new
			n.agentTCP.Close()
			n.coordinatorTCP.Close()
		}
	}
	step("init --add .", func(h *host.Host) { f.certs.sendCA(t, h) })
	f.restartEtcd(t)
	f.certs.issue(t, f.hosts(), " --force")
	step("show ca.crt", func(h *host.Host) { f.certs.send(t, h) })
	step("retire .", func(h *host.Host) { f.certs.sendCA(t, h) })
	f.restartEtcd(t)

	told := stream.Stop()
	assert.Zero(t, views.Stop().Failed(), "%s", views)
	assert.Equal(t, before, f.processes(t), "nothing was restarted")
	assert.NotEqual(t, authority, f.issuer(t), "another CA signs")
	for _, n := range f.nodes {
		for _, port := range []string{"7710", "7711"} {
			c := f.certs.client("admin")
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &former, nil }
			assert.Error(t, n.handshake(t, port, c), "who shows a certificate of the old CA is refused")
			assert.NoError(t, n.handshake(t, port, f.certs.client("admin")))
		}
	}
	_ = f.kv.Close()
	f.kv = f.etcd.client(t)
	f.prove(t, f.id("ce"), told)
}

// processes are the agents and coordinators of the fleet.
func (f *fleet) processes(t *testing.T) (pids string) {
	t.Helper()
	for _, n := range f.nodes {
		pids += n.Run(t, "systemctl show -P MainPID warmd-agent.service "+coordinatorUnit) + "\n"
	}
	return pids
}

// watchViews fails a call for every look at which some member misses another one.
func (f *fleet) watchViews(t *testing.T) *load.Load {
	return f.watchCalls(t, func(view placement.Fleet) bool {
		return !slices.ContainsFunc(view.Nodes, func(v placement.NodeView) bool { return !v.Alive })
	})
}

// watchCalls asks every agent and every coordinator, again and again.
func (f *fleet) watchCalls(t *testing.T, well func(placement.Fleet) bool) *load.Load {
	return load.Ask(t.Context(), 3, func(ctx context.Context) error {
		for _, n := range f.nodes {
			for _, ask := range []func(context.Context) (placement.Fleet, error){n.agent.Fleet, n.coordinator.Fleet} {
				view, err := ask(ctx)
				if err != nil {
					return fmt.Errorf("%s: %w", n.Name, err)
				}
				if !well(view) {
					return errors.New(n.Name + " sees " + summary(view))
				}
			}
		}
		return nil
	})
}

// restartEtcd restarts one member after the other: etcd reads its CA when it starts.
func (f *fleet) restartEtcd(t *testing.T) {
	t.Helper()
	for _, n := range f.nodes {
		n.Run(t, "systemctl restart "+etcdUnit)
		f.each(t, func(n *node) { f.untilCoordinates(t, n) })
	}
}

// issuer is who signs the agents' certificates.
func (f *fleet) issuer(t *testing.T) string {
	t.Helper()
	return f.nodes[0].Run(t, "openssl x509 -noout -issuer -in /etc/warmd/tls/agent.crt")
}

// handshake calls a server and waits for its word on our certificate.
func (n *node) handshake(t *testing.T, port string, config *tls.Config) error {
	t.Helper()
	conn, err := lab.Dial(t.Context(), "tcp", n.Name+":"+port)
	require.NoError(t, err)
	config.ServerName = n.Name
	c := tls.Client(conn, config)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err = c.Write([]byte("GET /v1/capacity HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")); err == nil {
		_, err = c.Read(make([]byte, 1)) // in TLS 1.3 a refusal comes after the handshake
	}
	return err
}
