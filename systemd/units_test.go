package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// unitRoot is a folder that looks like a host on which warmd is installed: the units
// of this host's systemd, because ours name targets of it, our own, and stubs of the
// programs that they start. --root makes systemd-analyze look there for all of them,
// so that the test needs neither an installed warmd nor root.
func unitRoot(t *testing.T) (root string, units []string) {
	t.Helper()
	root = t.TempDir()
	to := filepath.Join(root, "usr/lib/systemd/system")
	require.NoError(t, os.CopyFS(to, os.DirFS("/usr/lib/systemd/system")))
	for _, stub := range []string{"usr/bin/warmd", "usr/bin/nvidia-modprobe", "bin/kill"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, stub)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, stub), []byte("#!/bin/sh\n"), 0o755))
	}
	entries, err := os.ReadDir("units")
	require.NoError(t, err)
	for _, e := range entries {
		body, err := os.ReadFile(filepath.Join("units", e.Name()))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(to, e.Name()), body, 0o644))
		units = append(units, strings.Replace(e.Name(), "@.", "@vllm-0.32.0.3.", 1))
	}
	return root, units
}

// verify is what `systemd-analyze verify` complains about. --man=no: the pages come
// from packages that this host need not have.
func verify(t *testing.T, root string, units ...string) string {
	t.Helper()
	args := append([]string{"verify", "--recursive-errors=yes", "--man=no", "--root=" + root}, units...)
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	if err != nil && len(out) == 0 {
		return err.Error()
	}
	return string(out)
}

func TestUnitsAreCleanForSystemdAnalyze(t *testing.T) {
	root, units := unitRoot(t)
	assert.Len(t, units, 7)
	assert.Empty(t, verify(t, root, units...))
}

// A key that this systemd does not know is ignored by it, with all that it stood for:
// the test above must see one, or it proves nothing. On 252 it also keeps those out
// that came later.
func TestUnknownKeyOrMissingProgramWouldBeSeen(t *testing.T) {
	root, units := unitRoot(t)
	for _, u := range []struct{ from, to, want string }{
		{"WatchdogSec=", "WatchdogTime=", "Unknown key 'WatchdogTime'"},
		{"Type=notify\n", "Type=notify-later\n", "Failed to parse service type"},
		{"/usr/bin/warmd agent", "/usr/bin/warmed agent", "Command /usr/bin/warmed is not executable"},
	} {
		at := filepath.Join(root, "usr/lib/systemd/system/warmd-agent.service")
		body, err := os.ReadFile(at)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(at, []byte(strings.Replace(string(body), u.from, u.to, 1)), 0o644))
		assert.Contains(t, verify(t, root, units...), u.want)
		require.NoError(t, os.WriteFile(at, body, 0o644))
	}
}

var exposureRE = regexp.MustCompile(`Overall exposure level for \S+ ([0-9.]+) `)

func TestExposureOfEachServiceStaysLow(t *testing.T) {
	root, _ := unitRoot(t)
	for unit, most := range map[string]float64{
		"warmd-agent.service": 2.0, "warmd-coordinator.service": 1.8, "warmd-runtime@vllm-0.32.0.3.service": 3.0,
	} {
		out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--root="+root, "--no-pager", "--threshold=100", unit).CombinedOutput()
		require.NoError(t, err, "%s", out)
		m := exposureRE.FindSubmatch(out)
		require.NotNil(t, m, "%s", out)
		score, err := strconv.ParseFloat(string(m[1]), 64)
		require.NoError(t, err)
		t.Logf("%s: exposure %.1f, at most %.1f", unit, score, most)
		assert.LessOrEqual(t, score, most, "%s:\n%s", unit, out)
	}
}

// What systemd-analyze cannot know: settings that break CUDA, or the promise that
// engines outlive the control plane.
func TestUnitsKeepWhatEnginesNeed(t *testing.T) {
	unit := func(name string) map[string][]string {
		body, err := os.ReadFile(filepath.Join("units", name))
		require.NoError(t, err)
		out := map[string][]string{}
		for line := range strings.Lines(string(body)) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
				out[k] = append(out[k], v)
			}
		}
		return out
	}
	runtime := unit("warmd-runtime@.service")
	for _, breaks := range []string{"PrivateDevices", "MemoryDenyWriteExecute", "ProtectControlGroups", "PartOf", "BindsTo", "Requires"} {
		assert.NotContains(t, runtime, breaks)
	}
	assert.Equal(t, []string{"cgroup"}, runtime["ExitType"], "engines outlive their zygote")
	assert.Equal(t, []string{"continue"}, runtime["OOMPolicy"], "one worker that is killed for its memory does not end the others")
	assert.Equal(t, []string{"warmd-engine"}, runtime["User"])
	agent := unit("warmd-agent.service")
	assert.NotContains(t, agent, "PrivateDevices")
	assert.NotContains(t, agent, "ProtectProc", "it watches another user's processes")
	assert.Equal(t, []string{"yes"}, agent["RuntimeDirectoryPreserve"])
	for _, u := range []map[string][]string{runtime, agent} {
		assert.Equal(t, []string{"closed"}, u["DevicePolicy"])
		assert.Equal(t, []string{"char-195 rw", "char-nvidia* rw"}, u["DeviceAllow"])
	}
	for _, u := range []map[string][]string{agent, unit("warmd-coordinator.service")} {
		assert.Equal(t, []string{"0"}, u["StartLimitIntervalSec"], "a unit that gave up takes its socket down with it")
		assert.Equal(t, []string{"notify"}, u["Type"], "252 does not know notify-reload")
		assert.NotContains(t, u, "PrivateUsers", "it must see who connects")
	}
	assert.NotContains(t, unit("warmd-coordinator.service"), "RuntimeDirectory", "it would take the agent's folder away")
}
