package runtime

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// importTime lists the variables that are read before or while the engine is
// imported, or at the first CUDA call: a parked worker cannot change them any
// more. A trailing * matches any rest.
var importTime = []string{
	// the process and its loader
	"LD_*", "MALLOC_*", "JE_*", "GLIBC_*", "PATH", "HOME", "LANG", "LC_*", "XDG_*", "PYTHON*", "LOGNAME",
	// constants of huggingface_hub and transformers
	"HF_*", "HUGGINGFACE_*", "TRANSFORMERS_*",
	// thread pools, sized once
	"OMP_*", "KMP_*", "GOMP_*", "OPENBLAS_*", "MKL_*",
	// module-level configuration of torch and its compilers
	"TORCH_*", "THP_*", "TORCHINDUCTOR_*", "TORCHDYNAMO_*", "TRITON_*", "FLA_*", "FLASHINFER_*",
	// first CUDA call: set when a worker is forked for its device, not at load
	"CUDA_*", "PYTORCH_*", "NVIDIA_*",
	// vLLM: read while modules are imported, or while the argument parser is built
	"VLLM_LOGGING_*", "VLLM_CONFIGURE_LOGGING", "VLLM_PROCESS_NAME_PREFIX", "VLLM_CONFIG_ROOT", "VLLM_CACHE_ROOT",
	"VLLM_TARGET_DEVICE", "VLLM_PLUGINS", "VLLM_USE_MODELSCOPE", "VLLM_USAGE_STATS_SERVER",
	"VLLM_RINGBUFFER_WARNING_INTERVAL", "VLLM_MEDIA_LOADING_THREAD_COUNT", "VLLM_MOE_DP_CHUNK_SIZE",
	"VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_ENGINE_ITERATION_TIMEOUT_S",
}

// ImportTime reports whether a variable is fixed once an engine is imported.
func ImportTime(key string) bool {
	return slices.ContainsFunc(importTime, func(p string) bool {
		if pre, ok := strings.CutSuffix(p, "*"); ok {
			return strings.HasPrefix(key, pre)
		}
		return key == p
	})
}

// Sealed says why a variable is never set for an engine, whoever asks for it: a
// request, an operator's list or a runtime; empty for every other.
func Sealed(key string) string {
	if key == "VLLM_SERVER_DEV_MODE" {
		return "it opens endpoints with which every client can run code in the engine"
	}
	return ""
}

// importEnv is the part of an environment that is fixed at import.
func importEnv(env map[string]string) map[string]string {
	out := maps.Clone(env)
	maps.DeleteFunc(out, func(k, _ string) bool { return !ImportTime(k) })
	return out
}

// engineEnv is the whole environment of a vLLM runtime: nothing is inherited, so
// that a parked and a cold start, from a shell or from systemd, see the same. The
// reason of each line is beside it.
func engineEnv(dir, python, device string, cores int) map[string]string {
	cache := filepath.Join(dir, cacheDir)
	env := map[string]string{
		// The venv's own tools first: vLLM runs ninja and its helpers by name.
		"PATH": strings.Join([]string{filepath.Dir(python), "/usr/local/bin", "/usr/bin", "/bin"}, ":"),
		// No user's configuration is read and nothing is written into a user's home.
		"HOME": filepath.Join(cache, "home"),
		// getpass.getuser() fails for a uid without a passwd entry.
		"LOGNAME": "warmd",
		"LANG":    "C.UTF-8",
		// Every cache beside the runtime: it is warmed once by the rehearsal, shared by
		// all starts, and gone with the runtime.
		"XDG_CACHE_HOME":            filepath.Join(cache, "xdg"),
		"XDG_CONFIG_HOME":           filepath.Join(cache, "config"),
		"VLLM_CACHE_ROOT":           filepath.Join(cache, "vllm"),
		"VLLM_CONFIG_ROOT":          filepath.Join(cache, "config", "vllm"),
		"HF_HOME":                   filepath.Join(cache, "huggingface"),
		"TRITON_CACHE_DIR":          filepath.Join(cache, "triton"),
		"TORCHINDUCTOR_CACHE_DIR":   filepath.Join(cache, "inductor"),
		"FLASHINFER_WORKSPACE_BASE": filepath.Join(cache, "flashinfer"),
		// Models are folders on this host: a start never waits for a network.
		"HF_HUB_OFFLINE": "1",
		// Usage statistics start a thread and open a connection at every start.
		"VLLM_NO_USAGE_STATS": "1",
		"DO_NOT_TRACK":        "1",
		// OpenBLAS starts its pool at import: with 1 there is none, and the zygote has
		// one thread when it forks. The engine's own work is done by OpenMP.
		"OPENBLAS_NUM_THREADS": "1",
		// pyarrow, which transformers pulls in where it is installed, has a jemalloc that
		// starts a thread at import.
		"JE_ARROW_MALLOC_CONF": "background_thread:false",
	}
	switch device {
	case "cpu":
		// A build for CPU names itself so by its version only; said outright, an adopted
		// install without that name works too.
		env["VLLM_TARGET_DEVICE"] = "cpu"
		// Read when torch is imported, so it must be here and not with a request.
		env["OMP_NUM_THREADS"] = strconv.Itoa(cores)
		// A thread that has no work sleeps. By default it spins, and takes a core from the
		// API server and from the next layer's Python: opt-125m on two cores then starts in
		// 1.7 s instead of 1.3, and answers no faster.
		env["OMP_WAIT_POLICY"] = "PASSIVE"
		// Two engines of one host must not be pinned to the same cores.
		env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
		// GiB of KV cache; unset means half of the memory, filled with zeros at start. It
		// is read at load: a request may set another one and still start warm.
		env["VLLM_CPU_KVCACHE_SPACE"] = "1"
		// Otherwise inductor probes the vector instructions with g++ at every start: +24 s.
		env["TORCHDYNAMO_DISABLE"] = "1"
	case "cuda":
		env["PATH"] += ":/usr/local/cuda/bin"
		env["CUDA_CACHE_PATH"] = filepath.Join(cache, "cuda")
	}
	return env
}

// FlagsWin takes out of an environment what a flag of the same start says more exactly:
// vLLM lets VLLM_CPU_KVCACHE_SPACE win over --kv-cache-memory-bytes, and then a
// runtime's default would win over what was asked for. half.py does it for parked starts.
func FlagsWin(env map[string]string, args []string) {
	if slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return strings.ReplaceAll(name, "_", "-") == "--kv-cache-memory-bytes"
	}) {
		delete(env, "VLLM_CPU_KVCACHE_SPACE")
	}
}

// ProfileKeyOf is the sha256 over everything that a parked process cannot change:
// two runtimes with one key are exchangeable. Where the runtime and its venv lie is
// taken out of values, so that the same install on two hosts has the same key.
func ProfileKeyOf(m Manifest) string {
	places := strings.NewReplacer()
	if m.Dir != "" && m.Python != "" { // the first pair that matches wins: the venv is often inside
		places = strings.NewReplacer(filepath.Dir(filepath.Dir(m.Python)), "{venv}", m.Dir, "{dir}")
	}
	h := sha256.New()
	line := func(k, v string) { fmt.Fprintf(h, "%d %s=%d %s\n", len(k), k, len(v), v) }
	line("engine", m.Engine+" "+m.Version)
	line("device", m.Device)
	line("python", m.PythonVersion)
	line("torch", m.TorchVersion)
	for _, k := range slices.Sorted(maps.Keys(m.ImportEnv)) {
		line("env "+k, places.Replace(m.ImportEnv[k]))
	}
	for _, p := range slices.Sorted(slices.Values(m.Plugins)) {
		line("plugin", p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// installEnv is the environment of an installer: the caller's own, so that its
// proxy, certificates and package index are used, less what would spoil the result.
func installEnv(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		switch k {
		case "PYTHONDONTWRITEBYTECODE", // a runtime without bytecode starts in twice the time
			"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", // another interpreter's world
			"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES": // ours, not a child's
			return true
		}
		return false
	})
}

// makeCaches makes the folders that the environment names.
func makeCaches(env map[string]string, dir string) error {
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if v := env[k]; strings.HasPrefix(v, filepath.Join(dir, cacheDir)+string(filepath.Separator)) {
			if err := os.MkdirAll(v, 0o755); err != nil {
				return fmt.Errorf("make cache: %w", err)
			}
		}
	}
	return nil
}
