package nspawn

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
)

// TestIdleAgentCostsLittle measures an agent that has nothing to do, on a host whose
// NVIDIA driver is a stand-in.
func TestIdleAgentCostsLittle(t *testing.T) {
	lib := filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	out, err := exec.Command("cc", "-shared", "-fPIC", "-DSTEP_MS=1000", "-o", lib, "../../agent/internal/gpu/testdata/fakenvml.c").CombinedOutput()
	require.NoError(t, err, "%s", out)
	h, err := lab.Boot(t.Context(), "idle", host.Spec{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Kill() })
	lab.Explain(t)
	h.Install(t, thisRelease(t).deb...)
	h.Copy(t, lib, "/opt/test/libnvidia-ml.so.1", 0o644)
	h.Run(t, "warmd runtime add any --device cuda --exec -- python3 -m http.server {port}")
	h.Write(t, "/etc/warmd/agent.toml", "device = \"cuda\"\nnvml_library = \"/opt/test/libnvidia-ml.so.1\"\nscript_dir = \"/usr/lib/warmd/python\"\nruntimes_dir = \"/var/lib/warmd/runtimes\"\n", 0o644)
	h.Write(t, "/etc/systemd/system/"+agentUnit+".d/fake.conf", "[Service]\nEnvironment=FAKE_NVML=/opt/test/nvml\n", 0o644)
	h.Run(t, "systemctl daemon-reload")
	s := soloClients(t, h)
	for _, devices := range []int{1, 8} {
		h.Write(t, "/opt/test/nvml/gpus", fmt.Sprint(devices), 0o644)
		h.Run(t, "systemctl restart "+agentUnit)
		st, err := s.node(t)
		require.NoError(t, err)
		require.Len(t, st.Capacity.Devices, devices)
		time.Sleep(5 * time.Second) // what it does at its start is over
		const while = 20 * time.Second
		before := s.cpu(t)
		time.Sleep(while)
		share := 100 * (s.cpu(t) - before).Seconds() / while.Seconds()
		rss := s.rss(t)
		figure(fmt.Sprintf("idle_cpu_percent_of_a_core_%d_devices", devices), fmt.Sprintf("%.2f", share))
		figure(fmt.Sprintf("idle_rss_mib_%d_devices", devices), fmt.Sprintf("%.1f", rss))
		assert.Less(t, share, 5.0, "percent of a core")
		assert.Less(t, rss, 100.0, "MiB")
	}
}

// cpu is the time that the agent's unit has used, as its cgroup counts it.
func (s *solo) cpu(t testing.TB) time.Duration {
	t.Helper()
	var usec int64
	_, err := fmt.Sscan(s.Run(t, "sed -n 's/^usage_usec //p' /sys/fs/cgroup/system.slice/"+agentUnit+"/cpu.stat"), &usec)
	require.NoError(t, err)
	return time.Duration(usec) * time.Microsecond
}

// rss is the agent's resident memory in MiB.
func (s *solo) rss(t testing.TB) float64 {
	t.Helper()
	var kib float64
	out := s.Run(t, "sed -n 's/^VmRSS:[[:space:]]*//p' /proc/$(systemctl show -P MainPID "+agentUnit+")/status")
	_, err := fmt.Sscan(strings.TrimSuffix(out, " kB"), &kib)
	require.NoError(t, err)
	return kib / 1024
}
