package worker

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/runtime"
)

// pythonHost has a runtime on the real zygote.py.
func pythonHost(t *testing.T, kind, python string) *host {
	h := newHost(t)
	scripts, err := runtime.Unpack(h.dir)
	require.NoError(t, err)
	h.scripts = scripts
	h.manifest = runtime.Manifest{
		Name: kind, Kind: kind, Python: python, Device: "cpu", Command: []string{"true"},
		Env: map[string]string{"PATH": os.Getenv("PATH"), "HOME": h.dir, "LANG": "C.UTF-8"},
	}
	return h
}

func execHost(t *testing.T) *host {
	python, err := exec.LookPath("python3")
	require.NoError(t, err, "these tests run zygote.py: install python3")
	return pythonHost(t, runtime.KindExec, python)
}

// server is a stand-in for an engine with a child of its own.
const server = `
import os, subprocess, sys, http.server
if sys.argv[1] == "crash":
    print("Traceback ...\nValueError: bad flag", flush=True); sys.exit(2)
subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
print("env", sorted(os.environ), os.getcwd(), flush=True)
print("ready", flush=True)
s = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
s.serve_forever()
`

func spawnServer(t *testing.T, h *host, r *Runtime, id, mode string) (*Worker, error) {
	t.Helper()
	return r.Spawn(within(t, 20*time.Second), SpawnSpec{
		ID: id, Argv: []string{h.manifest.Python, "-c", server, mode}, Env: []string{"ONLY=this", "PYTHONUNBUFFERED=1"}, Placement: "p1", Attempt: 3,
	})
}

// waitLog waits for a line of a worker's log.
func waitLog(t *testing.T, w *Worker, want string) string {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		if s := w.LogTail(50); strings.Contains(s, want) {
			return s
		}
		select {
		case <-tick.C:
		case <-deadline:
			require.Fail(t, "no such log line", "%s: %s", want, w.LogTail(50))
		}
	}
}

func TestRealZygoteSpawnsWithTheGivenEnvironmentOnlyAndStopTakesGrandchildren(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/secret")
	h := execHost(t)
	r, _ := h.agent()
	w, err := spawnServer(t, h, r, "w1", "serve")
	require.NoError(t, err)
	log := waitLog(t, w, "ready")
	require.Contains(t, log, "'ONLY', ")
	require.NotContains(t, log, "NOTIFY_SOCKET")
	require.NotContains(t, log, "WARMD")
	require.Contains(t, log, w.dir())
	require.Equal(t, Loading, w.Info().State)
	require.NoError(t, w.Served())
	require.Equal(t, Serving, w.Info().State)
	require.NoError(t, w.Served(), "again is no error")
	require.Equal(t, 3, w.Record().Attempt)
	all := sessionMembers(w.Record().Engine)
	require.GreaterOrEqual(t, len(all), 2)
	require.NoError(t, w.Stop(soon(t), 5*time.Second))
	requireGone(t, all...)
	require.Equal(t, "stopped", waitDead(t, w).Message)
}

func TestRealZygoteExplainsAColdDeath(t *testing.T) {
	h := execHost(t)
	r, _ := h.agent()
	w, err := spawnServer(t, h, r, "crash", "crash")
	if err == nil {
		require.Equal(t, "engine process exited with code 2: ValueError: bad flag", waitDead(t, w).Message)
	} else {
		require.ErrorContains(t, err, "ValueError: bad flag") // it was dead before Spawn looked
	}
	w, err = spawnServer(t, h, r, "kill", "serve")
	require.NoError(t, err)
	waitLog(t, w, "ready")
	all := sessionMembers(w.Record().Engine)
	require.NoError(t, w.Record().Engine.Signal(syscall.SIGKILL))
	require.Equal(t, "engine process killed by signal 9", waitDead(t, w).Message)
	requireGone(t, all...)

	_, err = r.Spawn(soon(t), SpawnSpec{ID: "missing", Argv: []string{"/nonexistent/engine"}})
	require.ErrorContains(t, err, "spawn worker missing: call spawn: bad_request: cannot start /nonexistent/engine")
	require.NoFileExists(t, r.logPath("missing"))
}

func TestRealZygoteMayDieUnderAColdWorker(t *testing.T) {
	h := execHost(t)
	first, stop := h.agent()
	w, err := spawnServer(t, h, first, "w1", "serve")
	require.NoError(t, err)
	waitLog(t, w, "ready")
	require.NoError(t, w.Served())
	rec := w.Record()
	all := sessionMembers(rec.Engine)
	zygote, _ := FindProc(first.Status().PID)
	stop()
	require.NoError(t, zygote.Signal(syscall.SIGKILL))
	require.True(t, awaitAll(context.Background(), []Proc{zygote}, 5*time.Second))
	requireAlive(t, all...)

	second, _ := h.agent()
	found, err := second.Found(soon(t))
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, rec.Engine, found[0].Engine)
	require.Equal(t, "p1", found[0].Placement)
	a, err := second.Adopt(soon(t), found[0])
	require.NoError(t, err)
	require.Equal(t, Serving, a.Info().State)
	waitZygote(t, second, isUp)
	require.NoError(t, a.Stop(soon(t), 0))
	requireGone(t, all...)
}

func TestExecRuntimeHasNoWarmWorkers(t *testing.T) {
	h := execHost(t)
	r, _ := h.agent()
	_, err := r.Fork(soon(t), ForkSpec{ID: "w1"})
	require.ErrorIs(t, err, ErrUnsupported)
}

// TestRealVLLM forks a real pair twice: the tokens of both, an agent that goes
// away while one serves, and the death of an engine.
func TestRealVLLM(t *testing.T) {
	python := os.Getenv("WARMD_TEST_PYTHON")
	if python == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("WARMD_TEST_PYTHON is not set: point it to the python of a venv with vLLM for CPU (warmd runtime add makes one)")
		}
		t.Skip("WARMD_TEST_PYTHON is not set: no vLLM to test with")
	}
	h := pythonHost(t, runtime.KindVLLM, python)
	cpuEngine(t, h)
	model := filepath.Join(h.dir, "model")
	gen := exec.Command(python, filepath.Join(h.scripts, "modelgen.py"), model)
	gen.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.dir}
	out, err := gen.CombinedOutput()
	require.NoError(t, err, "%s", out)

	first, stop := h.agent()
	began := time.Now()
	w, err := first.Fork(within(t, 3*time.Minute), ForkSpec{ID: "w1", Device: DeviceEnv{Kind: "cpu", ID: "cpu-0"}})
	require.NoError(t, err)
	t.Log("zygote and first pair", time.Since(began))
	began = time.Now()
	spare, err := first.Fork(soon(t), ForkSpec{ID: "w2", Device: DeviceEnv{Kind: "cpu", ID: "cpu-0"}})
	require.NoError(t, err)
	t.Log("second pair", time.Since(began))
	addr, f := listen(t)
	began = time.Now()
	require.NoError(t, w.Load(soon(t), LoadSpec{
		Placement: "p1", Attempt: 1, Listener: f,
		Argv: []string{"--model", model, "--served-model-name", "m", "--max-model-len", "128", "--dtype", "float32", "--enforce-eager"},
		Env:  map[string]string{"VLLM_CPU_KVCACHE_SPACE": "1"},
	}))
	f.Close()
	text := complete(t, addr)
	t.Logf("load to tokens %v: %q", time.Since(began), text)
	waitState(t, w, Serving)

	rec := w.Record()
	stop()
	require.Equal(t, text, complete(t, addr), "the same greedy tokens with no agent")
	second, _ := h.agent()
	w, err = second.Adopt(soon(t), rec)
	require.NoError(t, err)
	require.Equal(t, Serving, w.Info().State)
	other, err := second.Adopt(soon(t), spare.Record())
	require.NoError(t, err)
	require.Equal(t, Warm, other.Info().State)
	all := append(sessionMembers(rec.Engine), sessionMembers(rec.API)...)
	require.NoError(t, rec.Engine.Signal(syscall.SIGKILL))
	require.Equal(t, "engine killed by signal 9", waitDead(t, w).Message)
	requireGone(t, all...)

	_, f = listen(t)
	defer f.Close()
	require.NoError(t, other.Load(soon(t), LoadSpec{Placement: "p2", Attempt: 1, Listener: f, Argv: []string{"--model", "/nonexistent/model"}}))
	t.Log(waitDead(t, other).Message)
}

// cpuEngine is the environment that a CPU runtime needs to start at all.
func cpuEngine(t *testing.T, h *host) {
	t.Helper()
	cache := filepath.Join(h.dir, "cache")
	maps.Copy(h.manifest.Env, map[string]string{
		"PATH": filepath.Dir(h.manifest.Python) + ":/usr/bin:/bin", "HOME": cache, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2",
		"TORCHDYNAMO_DISABLE": "1", "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
		"HF_HUB_OFFLINE": "1", "VLLM_CACHE_ROOT": cache, "HF_HOME": cache + "/hf",
	})
	require.NoError(t, os.MkdirAll(cache, 0o755))
	ask := exec.Command(h.manifest.Python, "-c", "import importlib.metadata as m; print(m.version('vllm'))")
	ask.Env = h.manifest.Environ()
	out, err := ask.CombinedOutput()
	require.NoError(t, err, "WARMD_TEST_PYTHON=%s has no vLLM: %s", h.manifest.Python, out)
	version := strings.TrimSpace(string(out))
	if strings.Contains(version, "cpu") {
		return
	}
	// Some builds for CPU say so in their file name only, and vLLM looks at the version.
	info := filepath.Join(h.dir, "site", "vllm-"+version+"+cpu.dist-info")
	require.NoError(t, os.MkdirAll(info, 0o755))
	meta := "Metadata-Version: 2.1\nName: vllm\nVersion: " + version + "+cpu\n"
	require.NoError(t, os.WriteFile(filepath.Join(info, "METADATA"), []byte(meta), 0o644))
	h.manifest.Env["PYTHONPATH"] = filepath.Dir(info)
}

// complete asks for tokens; the request queues in the backlog until the engine
// is there.
func complete(t *testing.T, addr string) string {
	t.Helper()
	body := `{"model":"m","prompt":"Hello","max_tokens":8,"temperature":0,"ignore_eos":true}`
	req, err := http.NewRequestWithContext(within(t, 2*time.Minute), http.MethodPost, "http://"+addr+"/v1/completions", strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode, "%s", raw)
	var answer struct {
		Choices []struct {
			Text string `json:"text"`
		} `json:"choices"`
	}
	require.NoError(t, json.Unmarshal(raw, &answer), string(raw))
	require.Len(t, answer.Choices, 1)
	return answer.Choices[0].Text
}
