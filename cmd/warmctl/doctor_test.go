package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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
	h.host = host{root: h.dir, getenv: func(k string) string { return h.env[k] }, now: func() time.Time { return now }}
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
}

func TestRuntimesFolderFollowsTheRuleOfWarmdRuntime(t *testing.T) {
	h := newHost(t)
	h.env["WARMD_RUNTIMES"] = "/mine"
	require.Equal(t, "/mine", h.host.runtimesDir())
	delete(h.env, "WARMD_RUNTIMES")
	if os.Geteuid() == 0 {
		require.Equal(t, "/var/lib/warmd/runtimes", h.host.runtimesDir())
		return
	}
	require.Equal(t, "/home/u/.local/share/warmd/runtimes", h.host.runtimesDir())
	h.env["XDG_DATA_HOME"] = "/data"
	require.Equal(t, "/data/warmd/runtimes", h.host.runtimesDir())
}

func TestGPUNeedsNodesAndLibrary(t *testing.T) {
	h := newHost(t)
	require.Equal(t, "ok: no NVIDIA GPU: the agent offers cpu-0", one(t, h.host.checkGPU()))
	h.file("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
	h.file("/sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
	h.file("/sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
	h.file("/sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n") // its sound device
	require.Contains(t, one(t, h.host.checkGPU()), "broken: 1 NVIDIA GPU on the bus, but no /dev/nvidia*")
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

func TestGroupIsAskedForOnlyWhereTheServiceIsInstalled(t *testing.T) {
	h := newHost(t)
	require.Empty(t, h.host.checkGroup())
	h.file("/etc/group", "root:x:0:\nstaff:x:50:\n")
	require.Empty(t, h.host.checkGroup())
	h.file("/etc/group", "root:x:0:\nwarmd:x:64999:\n")
	got := one(t, h.host.checkGroup())
	if os.Geteuid() == 0 {
		require.Contains(t, got, "root may use the sockets")
	} else {
		require.Contains(t, got, "is not in group warmd")
	}
}

func TestSkewIsOnlyWhatLiesOutsideTheCall(t *testing.T) {
	asked, answered := now, now.Add(5*time.Second)
	require.Empty(t, checkSkew(now.Add(3*time.Second), asked, answered))
	require.Empty(t, checkSkew(now.Add(-time.Second), asked, answered))
	require.Empty(t, checkSkew(time.Time{}, asked, answered))
	require.Contains(t, one(t, checkSkew(now.Add(-time.Minute), asked, answered)), "differ by 1m0s")
	require.Contains(t, one(t, checkSkew(now.Add(15*time.Second), asked, answered)), "differ by 10s")
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
