package spec

import (
	"fmt"
	"slices"
	"strings"

	"warmd/agent/runtime"
	"warmd/placement"
)

// envAllowed lists the variables that a request may set: they tune, and name
// neither code, files nor servers.
var envAllowed = []string{
	"VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_CPU_SGL_KERNEL",
	"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "TORCHDYNAMO_DISABLE",
	"VLLM_LOGGING_LEVEL", "VLLM_ATTENTION_BACKEND", "VLLM_FLASH_ATTN_VERSION", "VLLM_USE_FLASHINFER_SAMPLER",
	"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", "VLLM_DEEP_GEMM_WARMUP", "VLLM_SKIP_P2P_CHECK",
	"VLLM_ALLOW_LONG_MAX_MODEL_LEN", "VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_ENGINE_ITERATION_TIMEOUT_S",
	"VLLM_SLEEP_WHEN_IDLE", "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "VLLM_RPC_TIMEOUT",
	"NCCL_DEBUG", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE", "NCCL_CUMEM_ENABLE",
	"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "CUDA_MODULE_LOADING", "CUDA_DEVICE_MAX_CONNECTIONS",
}

// envNever lists what not even an operator's list lets a request set: it loads
// code into the process, or it is warmd's own. A trailing * matches any rest.
var envNever = []struct{ name, why string }{
	{"LD_*", "it loads code into the process"},
	{"PYTHON*", "it loads code into the process"},
	{"GCONV_PATH", "it loads code into the process"},
	{"MALLOC_*", "it belongs to the process's loader"},
	{"GLIBC_TUNABLES", "it belongs to the process's loader"},
	{"BASH_ENV", "it loads code into the process"},
	{"ENV", "it loads code into the process"},
	{"PATH", "it decides which programs run"},
	{"HOME", "the runtime has its own"},
	{"XDG_*", "the runtime has its own"},
	{"VLLM_PLUGINS", "it loads code into the process"},
	{"VLLM_SERVER_DEV_MODE", "it opens endpoints that run code"},
	{"VLLM_ALLOW_RUNTIME_LORA_UPDATING", "it lets clients name folders of this host"},
	{"VLLM_CACHE_ROOT", "the runtime has its own"},
	{"VLLM_CONFIG_ROOT", "the runtime has its own"},
	{"VLLM_TARGET_DEVICE", "the runtime has its own"},
	{"VLLM_WORKER_MULTIPROC_METHOD", "warmd sets it"},
	{"VLLM_ALLOW_INSECURE_SERIALIZATION", "it lets clients run code"},
	{"CUDA_VISIBLE_DEVICES", "the slot decides the device"},
	{"NVIDIA_VISIBLE_DEVICES", "the slot decides the device"},
	{"OTEL_*", "warmd receives the traces of a start"},
	{"TRACEPARENT", "give it as traceparent of the request"},
	{"TRACESTATE", "give it as traceparent of the request"},
	{"NOTIFY_SOCKET", "it is systemd's"},
	{"WATCHDOG_*", "it is systemd's"},
	{"LISTEN_*", "it is systemd's"},
	{"INVOCATION_ID", "it is systemd's"},
	{"CREDENTIALS_DIRECTORY", "it is systemd's"},
	{"WARMD_*", "it is warmd's"},
}

// ownSockets keeps on loopback what an engine listens on besides its endpoint: the
// process groups of torch, which ask nobody who they are and would take the address
// that the host's name means. One placement is one engine on one host.
var ownSockets = map[string]string{"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}

// withOwnSockets adds them to what a request adds, where neither it nor the runtime
// says otherwise.
func withOwnSockets(m runtime.Manifest, env map[string]string) map[string]string {
	for k, v := range ownSockets {
		_, asked := env[k]
		if _, set := m.Env[k]; !set && !asked {
			env[k] = v
		}
	}
	return env
}

// checkEnv checks a request's variables and returns those that change something,
// and why they force a cold start, if they do.
func checkEnv(m runtime.Manifest, env map[string]string, extra []string) (map[string]string, string, error) {
	out := map[string]string{}
	var cold []string
	for _, k := range sortedKeys(env) {
		for _, n := range envNever {
			if pre, ok := strings.CutSuffix(n.name, "*"); n.name == k || (ok && strings.HasPrefix(k, pre)) {
				return nil, "", envError(k, "cannot be set: %s", n.why)
			}
		}
		if !slices.Contains(extra, k) && (m.Kind == runtime.KindExec || !slices.Contains(envAllowed, k)) {
			return nil, "", envError(k, "is not on this node's list").
				WithHint("an operator can allow it: allow_env = [%q] in the agent's configuration", k)
		}
		v := env[k]
		if strings.ContainsRune(v, 0) {
			return nil, "", envError(k, "has a NUL in its value")
		}
		have, set := m.Env[k]
		if set && have == v {
			continue // what it is anyway
		}
		out[k] = v
		if m.Kind == runtime.KindVLLM && runtime.ImportTime(k) {
			if !set {
				have = "unset"
			}
			cold = append(cold, fmt.Sprintf("%s=%s (parked with %s)", k, clip(v), have))
		}
	}
	if len(cold) > 0 {
		return out, "environment that is read while the engine is imported: " + strings.Join(cold, ", "), nil
	}
	return out, "", nil
}

func envError(key, format string, a ...any) *placement.Error {
	e := placement.Errorf(placement.CodeArgRefused, "environment variable %s %s", clip(key), fmt.Sprintf(format, a...))
	e.Field = "env." + clip(key)
	return e
}
