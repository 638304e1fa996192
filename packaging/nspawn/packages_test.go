package nspawn

import (
	"context"
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	agentapi "warmd/agent/api"
	"warmd/packaging/nspawn/host"
)

// Promise 1 of issue 4: packages are installed, upgraded, downgraded by a version,
// removed and purged on a booted host.

// packager installs and removes as a distribution's own tool does.
type packager struct {
	name             string
	files            func(release) []string
	install, upgrade string // commands, with the files behind them
	remove           string
	keeps            string // what a removal leaves of a configuration that was changed
}

var (
	byDpkg = packager{"dpkg", func(r release) []string { return r.deb }, "dpkg -i", "dpkg -i", "dpkg -r warmd warmctl", "/etc/warmd/agent.toml"}
	// Debian's rpm wanted to be asked twice; what our RPMs need is there under Debian's names.
	onDebian = map[string]string{"bookworm": " --force-debian"}[host.Suite()]
	byRPM    = packager{"rpm", func(r release) []string { return r.rpm }, "rpm -i --nodeps" + onDebian, "rpm -U --oldpackage --nodeps" + onDebian,
		"rpm -e --nodeps" + onDebian + " warmd warmctl", "/etc/warmd/agent.toml.rpmsave"}
)

func TestPackagesComeAreUpgradedAndGo(t *testing.T) {
	now, next := thisRelease(t), nextRelease(t)
	h, err := lab.Boot(t.Context(), "packaged", host.Spec{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Kill() })
	lab.Explain(t)
	h.Run(t, "systemd-run -q --unit=test-etcd --service-type=notify etcd --data-dir /var/lib/etcd-test")
	agent, err := agentapi.NewClient("http://local", &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return h.DialUnix(ctx, "/run/warmd/agent.sock")
	}})
	require.NoError(t, err)
	p := &packaged{Host: h, packager: byDpkg, agent: agent}
	steps := []struct {
		name string
		do   func(*testing.T)
	}{
		{"dpkg: installed, the agent's socket waits and nothing else runs", func(t *testing.T) { p.installed(t, now) }},
		{"dpkg: an upgrade restarts the agent and touches no engine", func(t *testing.T) { p.serve(t); p.upgraded(t, next) }},
		{"dpkg: a downgrade does the same", func(t *testing.T) { p.upgraded(t, now) }},
		{"dpkg: what an operator disabled stays so", func(t *testing.T) { p.disabled(t, next) }},
		{"dpkg: removed, engines end and the operator's files stay", func(t *testing.T) { p.removed(t) }},
		{"dpkg: installed again, it goes on with them", func(t *testing.T) { p.again(t, next) }},
		{"dpkg: purged, nothing is left but what is not ours", func(t *testing.T) { p.purged(t) }},
		{"rpm: installed", func(t *testing.T) {
			// Our scripts must take the way of a distribution that has no deb-systemd-helper.
			h.Run(t, "mkdir /root/hidden && mv /usr/bin/deb-systemd-helper /usr/bin/deb-systemd-invoke /root/hidden")
			p.packager = byRPM
			p.installed(t, now)
		}},
		{"rpm: upgraded", func(t *testing.T) { p.serve(t); p.upgraded(t, next) }},
		{"rpm: downgraded", func(t *testing.T) { p.upgraded(t, now) }},
		{"rpm: removed", func(t *testing.T) { p.removed(t) }},
	}
	for _, s := range steps {
		if !t.Run(s.name, s.do) {
			return
		}
	}
}
