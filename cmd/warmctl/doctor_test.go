package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/api/access/accesstest"
	"warmd/agent/api/access/pki"
	"warmd/placement"
)

// fakeHost is a folder that stands for a machine.
type fakeHost struct {
	t    *testing.T
	dir  string
	env  map[string]string
	host host
}

func newHost(t *testing.T) *fakeHost {
	h := &fakeHost{t: t, dir: t.TempDir(), env: map[string]string{"PATH": "/bin:/usr/bin", "HOME": "/home/u"}}
	h.host = host{root: h.dir, getenv: func(k string) string { return h.env[k] }, now: func() time.Time { return now },
		me: account{name: "ada", uid: 1000, gids: []int{1000}}, keptClock: func() (bool, error) { return true, nil }}
	h.file("/proc/meminfo", "MemTotal:       24000000 kB\nMemAvailable:   20000000 kB\n")
	return h
}

func (h *fakeHost) file(path, text string) { h.write(path, text, 0o644) }

func (h *fakeHost) program(path, text string) { h.write(path, "#!/bin/sh\n"+text+"\n", 0o755) }

func (h *fakeHost) write(path, text string, mode os.FileMode) {
	h.t.Helper()
	full := filepath.Join(h.dir, path)
	require.NoError(h.t, os.MkdirAll(filepath.Dir(full), 0o755))
	require.NoError(h.t, os.WriteFile(full, []byte(text), mode))
}

// one is the only finding, in one line.
func one(t *testing.T, fs []finding) string {
	t.Helper()
	require.Len(t, fs, 1)
	return fs[0].Status + ": " + fs[0].Message
}

// TestEveryFindingSaysWhatToDo: of all checks, on a machine where all is wrong.
func TestEveryFindingSaysWhatToDo(t *testing.T) {
	h := newHost(t)
	h.env["PYTHONDONTWRITEBYTECODE"] = "1"
	h.file("/proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 500000 kB\n")
	h.file("/dev/nvidia0", "")
	h.file("/runtimes/bad/runtime.json", "{")
	h.file("/etc/group", "root:x:0:\nwarmd:x:64999:\n")
	all := append(h.host.checkPython(t.Context()), h.host.checkRuntimes("/runtimes")...)
	all = append(append(append(all, h.host.checkGPU()...), h.host.checkMemory()...), h.host.checkGroup()...)
	all = append(append(all, h.host.checkRuntimes("/none")...), h.host.checkDisk("/data")...)
	require.Greater(t, len(all), 6)
	for _, f := range all {
		require.NotEmpty(t, f.Message)
		if f.Status != fine {
			require.NotEmpty(t, f.Try, "%+v", f)
		}
	}
}

func TestPythonIsFoundOrAskedFor(t *testing.T) {
	h := newHost(t)
	fs := h.host.checkPython(t.Context())
	require.Equal(t, broken, fs[0].Status)
	require.Contains(t, fs[0].Message, "no Python 3.10 to 3.13 and no uv")

	h.program("/usr/bin/uv", "")
	require.Contains(t, one(t, h.host.checkPython(t.Context())), "warning: no Python 3.10 to 3.13 here")

	h.program("/usr/bin/python3", "echo Python 3.9.2")
	require.Contains(t, one(t, h.host.checkPython(t.Context())), "warning")
	h.program("/usr/bin/python3", "echo Python 3.14.0")
	require.Contains(t, one(t, h.host.checkPython(t.Context())), "warning")
	h.program("/usr/bin/python3", "echo Python 3.12.4")
	require.Contains(t, one(t, h.host.checkPython(t.Context())), "ok: ")
	h.program("/bin/python3.11", "exit 1")
	require.Contains(t, one(t, h.host.checkPython(t.Context())), "python3.11")

	h.env["PYTHONDONTWRITEBYTECODE"] = "1"
	require.Contains(t, h.host.checkPython(t.Context())[1].Message, "compiles again")
}

func TestRuntimesAreReadFromTheirManifests(t *testing.T) {
	h := newHost(t)
	require.Contains(t, one(t, h.host.checkRuntimes("/r")), "warning: none installed")
	require.NoError(t, os.MkdirAll(filepath.Join(h.dir, "r/.tmp"), 0o755))
	require.Contains(t, one(t, h.host.checkRuntimes("/r")), "warning: none installed in /r")
	for _, tc := range []struct{ manifest, want string }{
		{"", "runtime.json"},
		{"{", "broken: v: runtime.json"},
		{`{"kind":"vllm","python":"/none/python"}`, "broken: v: its python /none/python cannot be run"},
		{`{"kind":"vllm","engine":"vllm","version":"0.32.0","device":"cpu","python":"/bin/py"}`, "warning: v: no import profile"},
		{`{"kind":"exec","command":[]}`, "broken: v: kind exec without a command"},
		{`{"kind":"exec","command":["/bin/serve","{port}"]}`, "ok: v: exec /bin/serve {port}"},
	} {
		h.program("/bin/py", "")
		if tc.manifest != "" {
			h.file("/r/v/runtime.json", tc.manifest)
		} else {
			require.NoError(t, os.MkdirAll(filepath.Join(h.dir, "r/v"), 0o755))
		}
		require.Contains(t, one(t, h.host.checkRuntimes("/r")), tc.want)
	}
	h.file("/r/v/runtime.json", `{"kind":"vllm","engine":"vllm","version":"0.32.0","device":"cpu","python":"/bin/py","profile":"profile.json"}`)
	h.file("/r/v/profile.json", "{}")
	require.Equal(t, "ok: v: vllm 0.32.0 for cpu", one(t, h.host.checkRuntimes("/r")))
	require.NoError(t, os.Rename(filepath.Join(h.dir, "r/v"), filepath.Join(h.dir, "far")))
	require.NoError(t, os.Symlink("../far", filepath.Join(h.dir, "r/v")))
	require.Equal(t, "ok: v: vllm 0.32.0 for cpu", one(t, h.host.checkRuntimes("/r")), "one that was added with --dir is a link")
}

func TestRuntimesFolderFollowsTheRuleOfWarmdRuntime(t *testing.T) {
	h := newHost(t)
	h.env["WARMD_RUNTIMES"] = "/mine"
	require.Equal(t, "/mine", h.host.runtimesDir())
	delete(h.env, "WARMD_RUNTIMES")
	require.Equal(t, "/home/u/.local/share/warmd/runtimes", h.host.runtimesDir())
	h.env["XDG_DATA_HOME"] = "/data"
	require.Equal(t, "/data/warmd/runtimes", h.host.runtimesDir())
	h.file("/var/lib/warmd/runtimes/v/runtime.json", "{}")
	require.Equal(t, "/var/lib/warmd/runtimes", h.host.runtimesDir(), "a user without runtimes asks about the service's")
	h.file("/data/warmd/runtimes/v/runtime.json", "{}")
	require.Equal(t, "/data/warmd/runtimes", h.host.runtimesDir())
	h.host.me.uid = 0
	require.Equal(t, "/var/lib/warmd/runtimes", h.host.runtimesDir())
}

func TestGPUNeedsNodesAndLibrary(t *testing.T) {
	h := newHost(t)
	require.Equal(t, "ok: no NVIDIA GPU: the agent offers cpu-0", one(t, h.host.checkGPU()))
	h.file("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
	h.file("/sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
	h.file("/sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
	h.file("/sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n") // its sound device
	require.Equal(t, "broken: 1 NVIDIA GPU on the bus, but no driver is installed (no libnvidia-ml.so.1, no /dev/nvidia*)", one(t, h.host.checkGPU()))
	h.file("/usr/lib64/libnvidia-ml.so.1", "")
	require.Equal(t, "broken: 1 NVIDIA GPU on the bus and a driver is installed, but it is not loaded (no /dev/nvidia*)", one(t, h.host.checkGPU()))
	require.Contains(t, h.host.checkGPU()[0].Try, "modprobe nvidia")
	require.NoError(t, os.Remove(filepath.Join(h.dir, "/usr/lib64/libnvidia-ml.so.1")))
	h.file("/dev/nvidia0", "")
	h.file("/dev/nvidia1", "")
	require.Contains(t, one(t, h.host.checkGPU()), "broken: 2 GPUs in /dev, but libnvidia-ml.so.1 is not found")
	h.env["LD_LIBRARY_PATH"] = ":/opt/driver"
	h.file("/opt/driver/libnvidia-ml.so.1", "")
	require.Contains(t, one(t, h.host.checkGPU()), "broken: "+h.dir+"/dev/nvidiactl cannot be opened")
	h.file("/dev/nvidiactl", "")
	require.Contains(t, one(t, h.host.checkGPU()), "ok: 2 GPUs, driver library ")
}

func TestMemoryIsGradedByWhatIsAvailable(t *testing.T) {
	h := newHost(t)
	for kb, want := range map[string]string{"20000000": "ok: 19.1 GiB available of 22.9 GiB", "4000000": "warning: 3.8 GiB", "1000000": "broken: 977 MiB"} {
		h.file("/proc/meminfo", "MemTotal: 24000000 kB\nMemAvailable: "+kb+" kB\n")
		require.Contains(t, one(t, h.host.checkMemory()), want)
	}
	require.NoError(t, os.Remove(filepath.Join(h.dir, "/proc/meminfo")))
	require.Contains(t, one(t, h.host.checkMemory()), "warning")
}

func TestGroupsSayWhoMayDoWhat(t *testing.T) {
	h := newHost(t)
	require.Empty(t, h.host.checkGroup())
	h.file("/etc/group", "root:x:0:\nstaff:x:50:\n")
	require.Empty(t, h.host.checkGroup(), "no packaged service")
	h.file("/etc/group", "root:x:0:\nwarmd:x:901:bob\nwarmd-place:x:902:\nwarmd-admin:x:903:\n")
	for want, me := range map[string]account{
		"ok: root may use the sockets":                                                                           {name: "root"},
		"warning: ada is not in group warmd and may not use":                                                     {name: "ada", uid: 1000, gids: []int{1000, 902, 903}}, // may not even connect
		"warning: bob was put into group warmd, but this session":                                                {name: "bob", uid: 1000, gids: []int{1000}},
		"ok: ada may look (role read); placing and releasing take group warmd-place, draining group warmd-admin": {name: "ada", uid: 1000, gids: []int{901}},
		"ok: ada may look, place and release (role place); draining takes group warmd-admin":                     {name: "ada", uid: 1000, gids: []int{901, 902}},
		"ok: ada may do everything (role admin)":                                                                 {name: "ada", uid: 1000, gids: []int{901, 903}},
	} {
		h.host.me = me
		require.Contains(t, one(t, h.host.checkGroup()), want)
	}
	h.host.me = account{name: "ada", uid: 1000}
	require.Equal(t, "sudo usermod -aG warmd ada, then log in again", h.host.checkGroup()[0].Try)
}

func TestSkewIsOnlyWhatLiesOutsideTheCall(t *testing.T) {
	asked, answered := now, now.Add(5*time.Second)
	skew := func(at time.Time) []finding {
		return checkSkew("agent", http.Header{"Date": {at.UTC().Format(http.TimeFormat)}}, asked, answered)
	}
	require.Empty(t, skew(now.Add(3*time.Second)))
	require.Empty(t, skew(now.Add(-2*time.Second)))
	require.Empty(t, checkSkew("agent", http.Header{}, asked, answered))
	require.Equal(t, "warning: the clock of the agent is 59s behind this host's: ages and traces mislead", one(t, skew(now.Add(-time.Minute))))
	require.Equal(t, "warning: the clock of the agent is 10s ahead of this host's: ages and traces mislead", one(t, skew(now.Add(15*time.Second))))
	require.Equal(t, "broken: the clock of the agent is 1h0m0s ahead of this host's: certificates made on one host are not valid yet on the other", one(t, skew(answered.Add(time.Hour))))
}

func TestAClockThatCannotBeRightIsBroken(t *testing.T) {
	h := newHost(t)
	require.Equal(t, "ok: synchronised", one(t, h.host.checkClock()))
	h.host.keptClock = func() (bool, error) { return false, nil }
	require.Contains(t, one(t, h.host.checkClock()), "warning: nothing synchronises it")
	h.file("/run/systemd/timesync/clock", "")
	require.Contains(t, one(t, h.host.checkClock()), "warning: systemd-timesyncd runs and has not reached a time server yet")
	h.file("/run/systemd/timesync/synchronized", "")
	require.Contains(t, one(t, h.host.checkClock()), "warning: nothing synchronises it", "it was, once")
	h.host.keptClock = func() (bool, error) { return false, errors.New("not in this container") }
	require.Contains(t, one(t, h.host.checkClock()), "ok: set")

	ca, err := pki.NewAuthority(pki.UnitFleet, now, time.Hour)
	require.NoError(t, err)
	h.file("/etc/warmd/tls/ca.crt", string(pki.EncodeCerts(ca.Cert)))
	require.Contains(t, one(t, h.host.checkClock()), "ok: ")
	h.host.now = func() time.Time { return now.Add(-24 * time.Hour) }
	require.Equal(t, "broken: it says 2026-11-22 12:00 UTC, but the CA in "+h.dir+"/etc/warmd/tls/ca.crt was made after that (valid from 2026-11-23 11:55 UTC): certificates are refused here",
		one(t, h.host.checkClock()))
	h.host.now = func() time.Time { return time.Unix(0, 0) }
	require.Contains(t, one(t, h.host.checkClock()), "broken: it is the year 1970 here")
}

// systemctl of a host: show answers from the files of a folder, list-units from failed.
const fakeSystemctl = `dir=$(dirname "$0")/units
case $1 in
show) cat "$dir/$3" 2>/dev/null || echo LoadState=not-found ;;
list-units) cat "$dir/failed" 2>/dev/null; true ;;
esac`

func TestUnitsThatAreNotEnabledOrHaveFailedAreNamed(t *testing.T) {
	h := newHost(t)
	require.Empty(t, h.host.checkUnits(t.Context()), "no systemd")
	h.program("/usr/bin/systemctl", fakeSystemctl)
	h.file("/run/systemd/system/x", "")
	require.Empty(t, h.host.checkUnits(t.Context()), "no package")
	unit := func(name, active, enabled, result string) {
		h.file("/usr/bin/units/"+name, "LoadState=loaded\nActiveState="+active+"\nUnitFileState="+enabled+"\nResult="+result+"\n")
	}
	unit("warmd-agent.socket", "active", "enabled", "success")
	unit("warmd-agent.service", "active", "enabled", "success")
	unit("warmd-coordinator.socket", "inactive", "disabled", "success")
	unit("warmd-coordinator.service", "inactive", "disabled", "success")
	require.Equal(t, "ok: warmd-agent.socket, warmd-agent.service", one(t, h.host.checkUnits(t.Context())), "a host need not have a coordinator")
	for _, c := range []struct{ name, active, enabled, result, want, try string }{
		{"warmd-agent.service", "inactive", "enabled", "success", "ok: warmd-agent.socket, warmd-agent.service (starts with the first request)", ""},
		{"warmd-agent.service", "failed", "enabled", "exit-code", "broken: warmd-agent.service has failed (exit-code)", "journalctl -u warmd-agent.service -n 50"},
		{"warmd-agent.service", "active", "disabled", "success", "warning: warmd-agent.service runs, but is not enabled", "systemctl enable warmd-agent.service"},
		{"warmd-agent.service", "inactive", "disabled", "success", "warning: warmd-agent.service is not enabled", "systemctl enable --now warmd-agent.service"},
		{"warmd-agent.socket", "inactive", "enabled", "success", "broken: warmd-agent.socket is enabled, but does not run", "systemctl start warmd-agent.socket"},
		{"warmd-agent.socket", "failed", "enabled", "service-start-limit-hit", "broken: warmd-agent.socket has failed (service-start-limit-hit)", "restart warmd-agent.socket"},
		{"warmd-coordinator.service", "failed", "enabled", "exit-code", "broken: warmd-coordinator.service has failed", "journalctl -u warmd-coordinator.service"},
	} {
		unit(c.name, c.active, c.enabled, c.result)
		f := h.host.checkUnits(t.Context())[0]
		require.Contains(t, f.Status+": "+f.Message, c.want)
		require.Contains(t, f.Try, c.try)
		if c.name == "warmd-coordinator.service" {
			continue
		}
		unit(c.name, "active", "enabled", "success")
	}
	unit("warmd-coordinator.service", "inactive", "disabled", "success")
	h.file("/usr/bin/units/failed", "warmd-runtime@vllm.3.service loaded failed failed warmd runtime vllm.3\n")
	require.Contains(t, h.host.checkUnits(t.Context())[0].Message, "warmd-runtime@vllm.3.service has failed")
}

func TestTheDaemonJudgesItsOwnConfiguration(t *testing.T) {
	h := newHost(t)
	require.Empty(t, h.host.checkConfig(t.Context(), "agent"))
	h.file("/etc/warmd/agent.toml", "")
	h.program("/usr/bin/warmd", `echo "warning: access: this host has no group warmd-admin"; echo "$3 is valid"`)
	require.Equal(t, "warning: access: this host has no group warmd-admin", one(t, h.host.checkConfig(t.Context(), "agent")))
	h.program("/usr/bin/warmd", `echo "$3 is valid"`)
	require.Equal(t, "ok: "+h.dir+"/etc/warmd/agent.toml is valid", one(t, h.host.checkConfig(t.Context(), "agent")))
	h.program("/usr/bin/warmd", `echo "warmd: $3:7: tls.key k cannot be read by user warmd" >&2; echo "$3:9: node x" >&2; exit 2`)
	got := h.host.checkConfig(t.Context(), "agent")
	require.Len(t, got, 2)
	require.Equal(t, finding{"config", broken, h.dir + "/etc/warmd/agent.toml:7: tls.key k cannot be read by user warmd", "correct it, then systemctl reload warmd-agent"}, got[0])
	require.Equal(t, h.dir+"/etc/warmd/agent.toml:9: node x", got[1].Message)
}

// TestOurKeyIsLookedAtAndAServicesIsNot, but by root.
func TestOurKeyIsLookedAtAndAServicesIsNot(t *testing.T) {
	fleet, h := accesstest.New(t), newHost(t)
	h.host.now = time.Now
	f := fleet.Issue(pki.Leaf{Name: "ada", Unit: "read", Client: true, Life: 48 * time.Hour}, time.Now())
	ours := []tlsFile{{path: f.CA}, {path: f.Cert}, {path: f.Key}}
	require.NoError(t, os.Remove(f.Key))
	require.Contains(t, one(t, h.host.checkCertificates(ours)), "broken: "+f.Cert+" (CN=ada,OU=read) has no key: "+f.Key+" does not exist")
	got, _ := h.host.checkCertificate(f.CA, f.Cert, f.Key, false)
	require.Equal(t, warn, got.Status, "only its end is near")
	if os.Geteuid() != 0 { // root may read everything
		require.NoError(t, os.WriteFile(f.Key, nil, 0o000))
		require.Contains(t, one(t, h.host.checkCertificates(ours)), "has a key that ada may not read")
	}
}

// TestDoctorAsksTheServers: what they say about themselves becomes findings.
func TestDoctorAsksTheServers(t *testing.T) {
	f := newFake(t)
	h := newHost(t)
	h.program("/usr/bin/uv", "")
	h.program("/usr/bin/python3.12", "")
	h.program("/bin/py", "")
	h.file("/r/v/runtime.json", `{"kind":"exec","command":["x"]}`)
	con := f.console()
	con.Host = h.dir
	con.Getenv = func(k string) string {
		if v := f.console().Getenv(k); v != "" {
			return v
		}
		return h.env[k]
	}
	got := warmctl(t, con, "doctor", "--runtimes", "/r")
	require.Equal(t, exitOK, got.code, got.out)
	require.Contains(t, got.out, "ok       coordinator  c1 (1.2.3) answers at http://")
	require.Contains(t, got.out, "ok       agent        n1 (1.2.3) answers at unix://")
	require.Contains(t, got.out, "warning  fleet        node n3 is failed, last heard 95s ago\n                        try: ")
	require.Contains(t, got.out, "0 broken")
	require.Empty(t, got.err)

	f.set(func() {
		f.status.Etcd = "no leader"
		n := &f.fleet.Nodes[0]
		n.Devices[0].Problem, n.Draining = "3 forks failed in a row", true
		n.Runtimes[0].Zygote = "down"
		n.Runtimes = append(n.Runtimes, placement.Runtime{Name: "old", Problem: "python is gone"})
	})
	got = warmctl(t, con, "doctor", "--runtimes", "/r")
	require.Equal(t, exitFailed, got.code)
	for _, want := range []string{"broken   etcd         no leader", "broken   device       cpu-0: 3 forks failed in a row", "broken   runtime      vllm: its zygote is down", "broken   runtime      old: python is gone", "warning  agent        it drains"} {
		require.Contains(t, got.out, want)
	}
	require.Empty(t, got.err, "the findings have said it")

	f.set(func() { f.clock = now.Add(-time.Hour) })
	got = warmctl(t, con, "doctor", "--runtimes", "/r")
	require.Contains(t, got.out, "broken   clock        the clock of the coordinator is 59m59s behind this host's")
	require.Contains(t, got.out, "broken   clock        the clock of the agent is 59m59s behind this host's")

	got = warmctl(t, con, "doctor", "--runtimes", "/r", "-o", "json")
	require.Equal(t, exitFailed, got.code)
	var answer struct {
		OK       bool
		Findings []finding
	}
	require.NoError(t, json.Unmarshal([]byte(got.out), &answer))
	require.False(t, answer.OK)
	require.Greater(t, len(answer.Findings), 8)
}

// TestServerThatWasNeverStartedIsNoFaultOfTheHost, but one that was named is.
func TestServerThatWasNeverStartedIsNoFaultOfTheHost(t *testing.T) {
	at := address{role: "agent", flag: "--agent", env: "WARMD_AGENT", addr: "unix:///nowhere/agent.sock"}
	err := reachError("dial unix /nowhere/agent.sock: connect: no such file or directory")
	f := serverDown(&call{}, at, err)
	require.Equal(t, warn, f.Status)
	require.True(t, strings.Contains(f.Try, "warmd dev"), f.Try)
	at.given = "WARMD_AGENT"
	require.Equal(t, broken, serverDown(&call{}, at, err).Status)
	require.Equal(t, broken, serverDown(&call{}, address{role: "agent", addr: "host:1"}, reachError("dial tcp: connection refused")).Status)
}
