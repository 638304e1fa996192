package runtime

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestImportTimeVariablesAreKnown(t *testing.T) {
	for key, want := range map[string]bool{
		"OMP_NUM_THREADS": true, "LD_PRELOAD": true, "HF_HUB_OFFLINE": true, "CUDA_VISIBLE_DEVICES": true, "VLLM_LOGGING_LEVEL": true,
		"VLLM_PLUGINS": true, "PATH": true, "TORCHDYNAMO_DISABLE": true, "VLLM_CPU_KVCACHE_SPACE": false, "VLLM_ATTENTION_BACKEND": false,
		"NCCL_DEBUG": false, "PATHOLOGY": false, "": false, "VLLM_NO_USAGE_STATS": false,
	} {
		if got := ImportTime(key); got != want {
			t.Errorf("%s: %v", key, got)
		}
	}
}

func sample(dir, python string) Manifest {
	m := Manifest{Engine: "vllm", Version: "0.32.0", Device: "cpu", PythonVersion: "3.11.7", TorchVersion: "2.13.0", Plugins: []string{"b", "a"}, Dir: dir, Python: python}
	m.Env = engineEnv(dir, python, m.Device, 2)
	m.ImportEnv = importEnv(m.Env)
	return m
}

func TestTheProfileKeyHoldsWhatAParkedProcessCannotChange(t *testing.T) {
	key := ProfileKeyOf(sample("/r/v", "/r/v/venv/bin/python"))
	for name, same := range map[string]func(*Manifest){
		"plugins in another order": func(m *Manifest) { m.Plugins = []string{"a", "b"} },
		"another place":            func(m *Manifest) { *m = sample("/data/w", "/data/w/venv/bin/python") },
		"an adopted venv":          func(m *Manifest) { *m = sample("/r/v", "/opt/venv/bin/python") },
		"env that is read at load": func(m *Manifest) { m.Env["VLLM_CPU_KVCACHE_SPACE"] = "8" },
		"the name":                 func(m *Manifest) { m.Name = "x" },
	} {
		m := sample("/r/v", "/r/v/venv/bin/python")
		same(&m)
		m.ImportEnv = importEnv(m.Env)
		if ProfileKeyOf(m) != key {
			t.Errorf("%s changed the key", name)
		}
	}
	for name, other := range map[string]func(*Manifest){
		"version": func(m *Manifest) { m.Version = "0.26.0" },
		"python":  func(m *Manifest) { m.PythonVersion = "3.12.1" },
		"torch":   func(m *Manifest) { m.TorchVersion = "2.11.0" },
		"device":  func(m *Manifest) { m.Device = "cuda" },
		"plugin":  func(m *Manifest) { m.Plugins = append(m.Plugins, "c") },
		"threads": func(m *Manifest) { m.Env["OMP_NUM_THREADS"] = "4" },
		"border":  func(m *Manifest) { m.Env["HF_X"] = "1\nenv" },
	} {
		m := sample("/r/v", "/r/v/venv/bin/python")
		other(&m)
		m.ImportEnv = importEnv(m.Env)
		if ProfileKeyOf(m) == key {
			t.Errorf("%s did not change the key", name)
		}
	}
}

func TestAnEngineWritesOnlyUnderItsRuntime(t *testing.T) {
	for _, device := range []string{"cpu", "cuda"} {
		env := engineEnv("/r/v", "/r/v/venv/bin/python", device, 2)
		for _, k := range []string{"HOME", "HF_HOME", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"} {
			if !strings.HasPrefix(env[k], "/r/v/cache/") {
				t.Errorf("%s=%s", k, env[k])
			}
		}
		if !strings.HasPrefix(env["PATH"], "/r/v/venv/bin:") {
			t.Errorf("PATH=%s", env["PATH"])
		}
		for k := range maps.Keys(env) {
			if strings.HasPrefix(k, "PYTHON") || strings.HasPrefix(k, "LD_") || k == "CUDA_VISIBLE_DEVICES" {
				t.Errorf("%s is set", k)
			}
		}
		if (env["TORCHDYNAMO_DISABLE"] == "1") != (device == "cpu") {
			t.Errorf("%s: TORCHDYNAMO_DISABLE=%q", device, env["TORCHDYNAMO_DISABLE"])
		}
	}
}

func TestInstallersInheritAllButWhatWouldSpoilThem(t *testing.T) {
	got := installEnv([]string{"HTTPS_PROXY=p", "PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH=/x", "NOTIFY_SOCKET=/s", "PIP_CERT=c", "VIRTUAL_ENV=/v"})
	if want := []string{"HTTPS_PROXY=p", "PIP_CERT=c"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
