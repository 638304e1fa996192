package nspawn

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentapi "warmd/agent/api"
	"warmd/packaging/nspawn/host"
	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

// packaged is a host that packages come to, with an engine to watch.
type packaged struct {
	*host.Host
	packager
	agent *agentapi.Client
}

func (p *packaged) do(t *testing.T, how string, r release) {
	t.Helper()
	var paths []string
	for _, f := range p.files(r) {
		to := "/var/tmp/" + filepath.Base(f)
		p.Copy(t, f, to, 0o644)
		paths = append(paths, to)
	}
	said := p.Run(t, "DEBIAN_FRONTEND=noninteractive "+how+" "+strings.Join(paths, " ")+" 2>&1 </dev/null; code=$?; rm "+strings.Join(paths, " ")+"; exit $code")
	t.Log(said)
}

// units says how the units are: "enabled active" ...
func (p *packaged) units(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, u := range []string{"warmd-agent.socket", "warmd-agent.service", "warmd-coordinator.socket", "warmd-coordinator.service"} {
		all[u] = p.Run(t, "systemctl show -P UnitFileState "+u+"; systemctl show -P ActiveState "+u)
	}
	return all
}

const (
	enabledActive    = "enabled\nactive"
	enabledInactive  = "enabled\ninactive"
	disabledInactive = "disabled\ninactive"
	gone             = "\ninactive"
)

func everyUnit(state string) map[string]string {
	return map[string]string{"warmd-agent.socket": state, "warmd-agent.service": state, "warmd-coordinator.socket": state, "warmd-coordinator.service": state}
}

// installed is a first installation.
func (p *packaged) installed(t *testing.T, r release) {
	p.do(t, p.install, r)
	want := everyUnit(disabledInactive)
	want["warmd-agent.socket"], want["warmd-agent.service"] = enabledActive, enabledInactive
	assert.Equal(t, want, p.units(t))
	assert.Empty(t, p.Run(t, "systemctl --failed --no-legend"))
	assert.Equal(t, `755 warmd:warmd /run/warmd
2770 warmd:warmd-engine /run/warmd/rt
660 warmd:warmd /run/warmd/agent.sock
2770 warmd:warmd-engine /var/log/warmd
755 root:root /var/lib/warmd
755 root:root /var/lib/warmd/runtimes
700 warmd:warmd /var/lib/warmd/agent
755 root:root /etc/warmd/tls`, p.Run(t, "stat -c '%a %U:%G %n' /run/warmd /run/warmd/rt /run/warmd/agent.sock /var/log/warmd /var/lib/warmd /var/lib/warmd/runtimes /var/lib/warmd/agent /etc/warmd/tls"))
	assert.Equal(t, "warmd warmd-engine", p.RunAs(t, "warmd", "id -nG"))
	assert.Equal(t, "warmd-engine", p.RunAs(t, "warmd-engine", "id -nG"))
	if p.name == "dpkg" {
		assert.Empty(t, p.Run(t, "dpkg --verify warmd warmctl"))
	} else {
		assert.Empty(t, p.Run(t, "rpm -V --nodeps warmd warmctl"))
	}
	assert.Equal(t, r.version, p.version(t), "the first request starts the agent")
	p.WaitUnit(t, "warmd-agent.service", "active", 30*time.Second)
}

// version is that of the agent that answers.
func (p *packaged) version(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	st, err := p.agent.Node(ctx)
	require.NoError(t, err)
	return st.Capacity.Version
}

// serve does what an operator does with a new host, and places a model.
func (p *packaged) serve(t *testing.T) {
	engine, err := os.ReadFile("testdata/engine.py")
	require.NoError(t, err)
	p.Write(t, enginePath, string(engine), 0o644)
	p.Run(t, `install -d /srv/models/any
warmd runtime add test --device cpu --exec -- python3 `+enginePath+` --port {port} --model {model} --name {name}
sed -i 's|^#model_roots = .*|model_roots = ["/srv/models"]|; s|^\[gossip\]|&\nlisten = "127.0.0.1:7946"|; 0,/^#advertise/s|^#advertise = ""|advertise = "127.0.0.1:7710"|' /etc/warmd/agent.toml
sed -i 's|^\[gossip\]|&\nlisten = "127.0.0.1:7947"\njoin = ["127.0.0.1:7946"]|' /etc/warmd/coordinator.toml
mkdir -p /etc/systemd/system/warmd-agent.socket.d
printf '[Socket]\nListenStream=127.0.0.1:7710\n' > /etc/systemd/system/warmd-agent.socket.d/fleet.conf
systemctl daemon-reload
systemctl stop warmd-agent.service
systemctl restart warmd-agent.socket
systemctl start warmd-agent.service
systemctl enable --now warmd-coordinator.socket warmd-coordinator.service`)
	assert.Equal(t, everyUnit(enabledActive), p.units(t))
	p.place(t, "kept")
	require.Len(t, engines(t, p.Host), 1)
}

// place asks the packaged command line.
func (p *packaged) place(t *testing.T, id string) (placed placement.Placement) {
	t.Helper()
	out := p.Run(t, "warmctl place any --name "+id+" --wait-capacity --timeout 60s -o json")
	require.NoError(t, json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &placed), out)
	return placed
}

// upgraded is another version while clients ask and an engine serves.
func (p *packaged) upgraded(t *testing.T, to release) {
	kept := p.kept(t)
	before, sockets := engines(t, p.Host), p.sockets(t)
	pids := p.Run(t, "systemctl show -P MainPID warmd-agent.service warmd-coordinator.service")
	direct := &http.Client{Transport: &http.Transport{DialContext: p.Dial, MaxIdleConnsPerHost: 4}}
	completions := load.Repeat(t.Context(), 2, func(ctx context.Context) error { return load.Complete(ctx, direct, kept.Endpoint, "kept", 10) })
	requests := load.Ask(t.Context(), 50, func(ctx context.Context) error { _, err := p.agent.Fleet(ctx); return err })
	begin := time.Now()
	p.do(t, p.upgrade, to)
	figure("upgrade_seconds_"+p.name, seconds(time.Since(begin)))
	assert.Equal(t, to.version, p.version(t))
	p.WaitUnit(t, "warmd-agent.service", "active", 30*time.Second)
	p.WaitUnit(t, "warmd-coordinator.service", "active", 30*time.Second)
	p.Run(t, "warmctl release "+p.place(t, "other").ID)
	for what, l := range map[string]*load.Load{"completions": completions, "requests": requests} {
		got := l.Stop()
		assert.Zero(t, got.Failed(), "%s: %s", what, got)
		figure("failed_"+what+"_of_upgrade_"+p.name, fmt.Sprintf("%d of %d", got.Failed(), got.OK()+got.Failed()))
	}
	assert.Equal(t, before, engines(t, p.Host), "another process serves")
	assert.Equal(t, kept, p.kept(t))
	assert.Equal(t, sockets, p.sockets(t), "a socket was closed and opened again")
	assert.NotEqual(t, pids, p.Run(t, "systemctl show -P MainPID warmd-agent.service warmd-coordinator.service"))
	assert.Equal(t, everyUnit(enabledActive), p.units(t))
	assert.Empty(t, p.Run(t, "systemctl --failed --no-legend"))
	assert.Equal(t, `model_roots = ["/srv/models"]`, p.Run(t, "grep ^model_roots /etc/warmd/agent.toml"))
}

// kept is the placement of serve, without what may change while it serves.
func (p *packaged) kept(t *testing.T) placement.Placement {
	t.Helper()
	var all []placement.Placement
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	all, err := p.agent.Placements(ctx)
	require.NoError(t, err)
	i := slices.IndexFunc(all, func(x placement.Placement) bool { return x.Request.Name == "kept" })
	require.GreaterOrEqual(t, i, 0, "%+v", all)
	require.Equal(t, placement.Ready, all[i].State, "%+v", all[i])
	return all[i]
}

// sockets names the lives of the socket units.
func (p *packaged) sockets(t *testing.T) string {
	t.Helper()
	return p.Run(t, "systemctl show -P InvocationID warmd-agent.socket warmd-coordinator.socket; stat -c %i /run/warmd/agent.sock /run/warmd/coordinator.sock")
}

// disabled is an upgrade of a host whose operator decided otherwise than we do.
func (p *packaged) disabled(t *testing.T, to release) {
	p.Run(t, "systemctl disable -q --now warmd-agent.service warmd-agent.socket warmd-coordinator.service warmd-coordinator.socket")
	before := engines(t, p.Host)
	p.do(t, p.upgrade, to)
	assert.Equal(t, everyUnit(disabledInactive), p.units(t))
	assert.Equal(t, before, engines(t, p.Host), "engines outlive an agent that is off, too")
	p.Run(t, "systemctl enable -q --now warmd-agent.service warmd-coordinator.service")
	assert.Equal(t, everyUnit(enabledActive), p.units(t))
	p.kept(t)
}

// removed ends everything and keeps what cannot be installed again.
func (p *packaged) removed(t *testing.T) {
	require.NotEmpty(t, engines(t, p.Host))
	begin := time.Now()
	p.Run(t, p.remove+" 2>&1")
	figure("removal_seconds_"+p.name, seconds(time.Since(begin)))
	assert.Empty(t, p.Processes(t, func(x host.Process) bool {
		return strings.Contains(x.Cgroup, "warmd") || slices.Contains(x.Args, enginePath)
	}), "a process outlived its package")
	assert.Equal(t, everyUnit(gone), p.units(t))
	assert.Equal(t, "inactive", p.Run(t, "systemctl show -P ActiveState warmd.slice"))
	assert.Empty(t, p.Run(t, "systemctl --failed --no-legend; ls /usr/bin/warm* /usr/lib/warmd 2>/dev/null || true"))
	p.Run(t, "test -e "+p.keeps+" -a -e /var/lib/warmd/runtimes/test/runtime.json -a -e /var/lib/warmd/agent/journal")
}

// again is an installation over what a removal left.
func (p *packaged) again(t *testing.T, r release) {
	p.do(t, p.install, r)
	units := p.units(t)
	assert.Equal(t, enabledActive, units["warmd-agent.socket"])
	assert.Equal(t, enabledActive, units["warmd-coordinator.socket"], "its operator had enabled it")
	assert.Equal(t, r.version, p.version(t))
	p.Run(t, "systemctl start warmd-agent.service warmd-coordinator.service")
	host.Until(t, 30*time.Second, "the engine that ended is known to have ended", func() error {
		all, err := p.agent.Placements(t.Context())
		if i := slices.IndexFunc(all, func(x placement.Placement) bool { return x.Request.Name == "kept" }); err == nil && i >= 0 && all[i].State != placement.Failed {
			err = fmt.Errorf("it is %s", all[i].State)
		}
		return err
	})
	p.Run(t, "warmctl release "+p.place(t, "new").ID)
}

// purged leaves users, whose files may be anywhere, and what an operator made.
func (p *packaged) purged(t *testing.T) {
	p.Run(t, "echo secret > /etc/warmd/tls/agent.key; echo log > /var/log/warmd/x; mkdir -p /var/lib/warmd/models && mount -t tmpfs none /var/lib/warmd/models && touch /var/lib/warmd/models/precious")
	p.Run(t, "dpkg -P warmd warmctl 2>&1 && test -e /var/lib/warmd/models/precious && umount /var/lib/warmd/models && rm -rf /var/lib/warmd")
	left := strings.Fields(p.Run(t, `find / -xdev -name '*warmd*' -o -xdev -name '*warmctl*' | sort; find /etc/warmd -type f; dpkg-query -l 'warm*' 2>/dev/null | grep '^[a-z][a-z] ' || true`))
	left = slices.DeleteFunc(left, func(path string) bool {
		return regexp.MustCompile(`^/(proc|sys|run/log|var/log/journal|etc/systemd/system/warmd-agent.socket.d)`).MatchString(path)
	})
	assert.Equal(t, []string{"/etc/warmd", "/etc/warmd/tls/agent.key"}, left)
	assert.Empty(t, p.Run(t, "systemctl --failed --no-legend"))
	p.Run(t, "rm -rf /etc/warmd /etc/systemd/system/warmd-agent.socket.d; systemctl daemon-reload; ETCDCTL_API=3 etcdctl del '' --prefix")
}
