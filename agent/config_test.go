package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/agent/runtime"
)

func write(t *testing.T, text string) string {
	path := filepath.Join(t.TempDir(), "agent.toml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestDefaultConfigIsValid(t *testing.T) { require.NoError(t, DefaultConfig().Validate()) }

func TestAConfigurationIsReadOverTheDefaults(t *testing.T) {
	c, _, err := ReadConfig(write(t, `
node = "gpu-7"
listen = ["10.0.0.7:7070"]
tls.ca = "/etc/warmd/tls/ca.crt"
tls.cert = "/etc/warmd/tls/agent.crt"
tls.key = "/etc/warmd/tls/agent.key"
endpoint_ports = "40000-40999"
model_roots = ["/models"]
[warm]
big = 2
[devices.cpu-0]
slots = 3
[devices.cpu-0.warm]
big = 0
`))
	require.NoError(t, err)
	require.Equal(t, "gpu-7", c.Node)
	require.Equal(t, "/var/lib/warmd/agent", c.DataDir)
	require.Equal(t, 3, c.slots("cpu-0", "cpu", 64<<30))
	require.Equal(t, 1, c.slots("GPU-1", "cuda", 141<<30))
	vllm := runtime.Manifest{Name: "big", Kind: runtime.KindVLLM}
	require.Equal(t, 0, c.warm("cpu-0", vllm))
	require.Equal(t, 2, c.warm("GPU-1", vllm))
	require.Equal(t, 1, c.warm("GPU-1", runtime.Manifest{Name: "other", Kind: runtime.KindVLLM}))
	require.Equal(t, 0, c.warm("GPU-1", runtime.Manifest{Name: "x", Kind: runtime.KindExec}))
	low, high, err := c.ports()
	require.NoError(t, err)
	require.Equal(t, []int{40000, 40999}, []int{low, high})
}

func TestSlotsOfACPUFollowItsMemory(t *testing.T) {
	c := DefaultConfig()
	for gib, want := range map[int64]int{2: 1, 8: 1, 23: 2, 512: 4} {
		require.Equal(t, want, c.slots("cpu-0", "cpu", gib<<30), "%d GiB", gib)
	}
}

func TestEveryWrongValueOfAConfigurationIsNamed(t *testing.T) {
	text := `node = "has space"
data_dir = "relative"
socket = "a.sock"
listen = ["7070", "127.0.0.1:7071", "10.0.0.7:7072"]
advertise = "x"
endpoint_host = "0.0.0.0"
endpoint_ports = "1-70000"
model_roots = ["models"]
device = "tpu"
keep_traces = -1
log_level = "loud"
noed = 1
[warm]
v = -1
[gossip]
listen = "10.0.0.1:7946"
join = ["a:b"]
[access]
read = ["warmd", "a b"]
root = ["wheel"]
[devices.cpu-0]
slots = 1000
[devices.cpu-0.warm]
v = 99
[trace]
otlp_endpoint = "collector:4318"
`
	c, f, err := ReadConfig(write(t, text))
	require.ErrorContains(t, err, "agent.toml:12: unknown key noed")
	require.ErrorContains(t, err, "agent.toml:20: unknown key access.root")
	var found []string
	for line := range strings.Lines(f.Locate(c.Validate()).Error()) {
		_, at, _ := strings.Cut(strings.TrimSpace(line), "agent.toml:")
		found = append(found, strings.Join(strings.Fields(at)[:2], " "))
	}
	require.Equal(t, []string{"1: node", "2: data_dir", "3: socket", "4: listen[0]", "4: listen[2]", "5: advertise", "6: endpoint_host", "7: endpoint_ports",
		"8: model_roots[0]", "9: device", "10: keep_traces", "11: log_level", "14: warm.v", "15: gossip.keys_file", "17: gossip.join[0]",
		"19: access.read[1]", "22: devices.cpu-0.slots", "24: devices.cpu-0.warm.v", "26: trace.otlp_endpoint"}, found)
}
