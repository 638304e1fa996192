package nspawn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
)

func TestHostsBootWithSystemdAndSeeEachOtherByName(t *testing.T) {
	hosts := three(t)
	for _, h := range hosts {
		assert.Equal(t, "running", h.Run(t, "systemctl is-system-running"), "%s has failed units: %s", h.Name, h.Run(t, "systemctl --failed"))
		assert.Equal(t, h.Name, h.Run(t, "hostname"))
		assert.Contains(t, h.Run(t, "systemctl --version"), map[string]string{"bookworm": "systemd 252", "trixie": "systemd 257"}[host.Suite()])
		assert.Equal(t, "cgroup2fs", h.Run(t, "stat -fc %T /sys/fs/cgroup"))
		assert.Equal(t, "nobody", h.RunAs(t, "nobody", "id -un"))
	}
	for _, from := range hosts {
		for _, to := range hosts {
			serveName(t, to)
			assert.Equal(t, to.Name, from.Run(t, "curl -sS -m 5 http://"+to.Name+":8080/hostname"))
		}
	}
}

// serveName serves a host's name on port 8080 until the end of the test.
func serveName(t *testing.T, h *host.Host) {
	t.Helper()
	h.Run(t, "systemctl is-active -q web || { hostname > /run/hostname; systemd-run -q --collect --unit=web python3 -m http.server --directory /run --bind "+h.Addr+" 8080; }")
	t.Cleanup(func() { h.Run(t, "systemctl stop web 2>/dev/null || true") })
	host.Until(t, 30*time.Second, "web server", func() error { return canConnect(t, lab.Dial, h.Addr+":8080") })
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// canConnect tries once, for at most a second.
func canConnect(t *testing.T, dial dialer, address string) error {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c, err := dial(ctx, "tcp", address)
	if err == nil {
		c.Close()
	}
	return err
}

func TestPartitionLosesPacketsBothWaysUntilHealed(t *testing.T) {
	hosts := three(t)
	a, b, c := hosts[0], hosts[1], hosts[2]
	serveName(t, a)
	serveName(t, b)
	a.Partition(t, b)
	assert.ErrorContains(t, canConnect(t, a.Dial, "h2:8080"), "timeout")
	assert.ErrorContains(t, canConnect(t, b.Dial, "h1:8080"), "timeout")
	assert.NoError(t, canConnect(t, c.Dial, "h1:8080"))
	a.Heal(t, b)
	assert.NoError(t, canConnect(t, a.Dial, "h2:8080"))
	assert.NoError(t, canConnect(t, b.Dial, "h1:8080"))
}

func TestDropLosesPacketsOfOneDirection(t *testing.T) {
	hosts := three(t)
	a, b := hosts[0], hosts[1]
	b.Run(t, "rm -f /run/heard; systemd-run -q --unit=ear --collect python3 -c 'import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind((\"0.0.0.0\",9000)); open(\"/run/heard\",\"wb\",0).write(s.recv(99))'")
	t.Cleanup(func() { b.Run(t, "systemctl stop ear 2>/dev/null || true") })
	host.Until(t, 30*time.Second, "ear listens", func() error {
		for _, l := range b.Listeners(t) {
			if l.Network == "udp" && strings.HasSuffix(l.Addr, ":9000") {
				return nil
			}
		}
		return fmt.Errorf("not among %v", b.Listeners(t))
	})
	say := func(from *host.Host) {
		c, err := from.Dial(t.Context(), "udp", b.Addr+":9000")
		require.NoError(t, err)
		defer c.Close()
		_, _ = c.Write([]byte(from.Name))
	}
	a.Drop(t, b)
	say(a)
	say(hosts[2])
	host.Until(t, 30*time.Second, "b heard the third host, not the first", func() error {
		if got, err := b.Try(t.Context(), "cat /run/heard"); got != "h3" {
			return errors.Join(fmt.Errorf("%q", got), err)
		}
		return nil
	})
}

func TestScanFindsExactlyTheOpenPorts(t *testing.T) {
	hosts := three(t)
	serveName(t, hosts[0])
	hosts[0].Run(t, "systemctl is-active -q inner || systemd-run -q --unit=inner python3 -m http.server --directory /run --bind 127.0.0.1 8081")
	t.Cleanup(func() { hosts[0].Run(t, "systemctl stop inner") })
	begin := time.Now()
	var want []int
	for _, l := range hosts[0].Listeners(t) {
		if addr, err := netip.ParseAddrPort(l.Addr); err == nil && l.Network == "tcp" && !addr.Addr().IsLoopback() {
			want = append(want, int(addr.Port()))
		}
	}
	slices.Sort(want)
	require.Contains(t, want, 8080)
	assert.Equal(t, slices.Compact(want), lab.Scan(t, hosts[0].Addr))
	figure("port_scan_seconds", fmt.Sprintf("%.1f", time.Since(begin).Seconds()))
}

func TestPausedHostIsSilentAndGoesOn(t *testing.T) {
	a := three(t)[0]
	serveName(t, a)
	require.NoError(t, a.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := a.Try(ctx, "true")
	assert.Error(t, err, "a paused host ran a command")
	require.NoError(t, a.Resume())
	assert.NoError(t, canConnect(t, lab.Dial, a.Addr+":8080"))
	a.Run(t, "true")
}

func TestHostWithoutPowerKeepsItsDiskAndComesBack(t *testing.T) {
	a := three(t)[2]
	serveName(t, a)
	a.Run(t, "echo kept > /var/lib/kept; echo lost > /run/lost; sync")
	require.NoError(t, a.Kill())
	assert.ErrorContains(t, canConnect(t, lab.Dial, a.Addr+":8080"), "timeout", "a host without power must not even refuse")
	_, err := a.Try(t.Context(), "true")
	assert.Error(t, err)
	require.NoError(t, a.Start(t.Context()))
	assert.Equal(t, "kept", a.Run(t, "cat /var/lib/kept; cat /run/lost 2>/dev/null || true"))
	require.NoError(t, a.Stop(t.Context()))
	require.NoError(t, a.Start(t.Context()))
}

func TestHostMayWriteWhatIsScratchAndReadWhatIsNot(t *testing.T) {
	lab.Explain(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/file", []byte("machine's"), 0o644))
	h, err := lab.Boot(t.Context(), "bound", host.Spec{Bind: []host.Bind{{From: dir, To: "/srv/own", Scratch: true}, {From: dir, To: "/srv/lent"}}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Kill() })
	assert.Equal(t, "machine's", h.Run(t, "cat /srv/lent/file"))
	assert.Equal(t, "host's", h.Run(t, "echo host\\'s > /srv/own/file; cat /srv/own/file"))
	_, err = h.Try(t.Context(), "echo > /srv/lent/file")
	assert.ErrorContains(t, err, "Read-only")
	b, err := os.ReadFile(dir + "/file")
	require.NoError(t, err)
	assert.Equal(t, "machine's", string(b))

	h.Run(t, "systemd-run -q -p Type=exec --unit=sleeper sleep 1000")
	got := h.Processes(t, func(p host.Process) bool { return p.Args[0] == "/usr/bin/sleep" || p.Args[0] == "sleep" })
	require.Len(t, got, 1)
	assert.Equal(t, "/system.slice/sleeper.service", got[0].Cgroup)
}
