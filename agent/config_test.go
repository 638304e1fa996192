package agent

import (
	"os"
	"path/filepath"
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
	c, err := LoadConfig(write(t, `
node = "gpu-7"
listen = ["10.0.0.7:7070"]
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
	require.Equal(t, "/var/lib/warmd", c.DataDir)
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

func TestWhatIsWrongInAConfigurationIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"node = \"a\"\nnoed = 1":           ":2: unknown key noed",
		"node = 7":                         ":1: ",
		"node = \"a\nb\"":                  ":1: ",
		"[devices.gpu]\nslot = 1":          ":2: unknown key devices.gpu.slot",
		`node = "has space"`:               "node ",
		`data_dir = "relative"`:            "data_dir ",
		`socket = "a.sock"`:                "socket ",
		`listen = ["7070"]`:                "listen[0] ",
		`advertise = "x"`:                  "advertise ",
		`endpoint_host = "0.0.0.0"`:        "endpoint_host ",
		`endpoint_ports = "9-1"`:           "endpoint_ports ",
		`endpoint_ports = "1-70000"`:       "endpoint_ports ",
		`model_roots = ["models"]`:         "model_roots[0] ",
		`device = "tpu"`:                   "device ",
		"[warm]\nv = -1":                   "warm.v ",
		"[devices.cpu-0]\nslots = 1000":    "devices.cpu-0.slots ",
		"[devices.cpu-0.warm]\nv = 99":     "devices.cpu-0.warm.v ",
		"keep_traces = 0":                  "keep_traces ",
		"[devices.cpu-0]\nslots = \"two\"": ":2: ",
	} {
		_, err := LoadConfig(write(t, text))
		require.ErrorContains(t, err, want, text)
		require.ErrorContains(t, err, "agent.toml")
	}
}

func TestAMissingConfigurationIsNamed(t *testing.T) {
	_, err := LoadConfig("/nonexistent/agent.toml")
	require.ErrorContains(t, err, "/nonexistent/agent.toml")
}
