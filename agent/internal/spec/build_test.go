package spec

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"warmd/agent/runtime"
	"warmd/placement"
)

func vllm() runtime.Manifest {
	return runtime.Manifest{
		Name: "v", Kind: runtime.KindVLLM, Engine: "vllm", Version: "0.32.0", Python: "/r/v/venv/bin/python", Device: "cpu",
		Env: map[string]string{"PATH": "/r/v/venv/bin:/bin", "OMP_NUM_THREADS": "2", "VLLM_CPU_KVCACHE_SPACE": "1"},
	}
}

func command() runtime.Manifest {
	return runtime.Manifest{Name: "x", Kind: runtime.KindExec, Command: []string{"/bin/serve", "--port={port}", "{model}", "{name}", "x{port}y"}, Env: map[string]string{"PATH": "/bin"}}
}

func TestAParkedAndAColdStartCarryTheSameFlags(t *testing.T) {
	dir := tempDir(t)
	r := placement.Request{Model: "tiny", Args: []string{"--seed=1", "--served-model-name=alias", "-O0"}, Env: map[string]string{"VLLM_CPU_KVCACHE_SPACE": "2"}}
	s, err := Build(vllm(), r, dir, 8123)
	if err != nil {
		t.Fatal(err)
	}
	flags := []string{"--served-model-name", "tiny", "alias", "--seed=1", "-O0", "--host=127.0.0.1", "--port=8123"}
	if want := append([]string{"--model", dir}, flags...); !slices.Equal(s.Argv, want) {
		t.Errorf("argv %q, want %q", s.Argv, want)
	}
	if want := append([]string{"/r/v/venv/bin/python", "/r/v/venv/bin/vllm", "serve", dir}, flags...); !slices.Equal(s.ServeArgv, want) {
		t.Errorf("serve argv %q, want %q", s.ServeArgv, want)
	}
	if s.Cold || s.ColdReason != "" {
		t.Errorf("cold: %s", s.ColdReason)
	}
	if want := withOwnSockets(vllm(), map[string]string{"VLLM_CPU_KVCACHE_SPACE": "2"}); !maps.Equal(s.Env, want) {
		t.Errorf("env %v", s.Env)
	}
	if want := []string{"GLOO_SOCKET_IFNAME=lo", "NCCL_SOCKET_IFNAME=lo", "OMP_NUM_THREADS=2", "PATH=/r/v/venv/bin:/bin", "VLLM_CPU_KVCACHE_SPACE=2", "VLLM_HOST_IP=127.0.0.1"}; !slices.Equal(s.FullEnv, want) {
		t.Errorf("full env %q", s.FullEnv)
	}
}

func TestWhatNeedsAColdStartSaysWhy(t *testing.T) {
	dir := tempDir(t)
	for name, c := range map[string]struct {
		m    runtime.Manifest
		r    placement.Request
		want string
	}{
		"import-time env":   {vllm(), placement.Request{Env: map[string]string{"OMP_NUM_THREADS": "1"}}, "OMP_NUM_THREADS=1 (parked with 2)"},
		"env that is unset": {vllm(), placement.Request{Env: map[string]string{"MKL_NUM_THREADS": "1"}}, "MKL_NUM_THREADS=1 (parked with unset)"},
		"two devices":       {vllm(), placement.Request{Args: []string{"-tp", "2"}}, "--tensor-parallel-size=2"},
		"exec":              {command(), placement.Request{}, "no warm stage"},
	} {
		t.Run(name, func(t *testing.T) {
			c.r.Model = "m"
			s, err := Build(c.m, c.r, dir, 1)
			if err != nil || !s.Cold || !strings.Contains(s.ColdReason, c.want) {
				t.Errorf("cold %v %q, %v; want %q", s.Cold, s.ColdReason, err, c.want)
			}
			c.r.Start = placement.StartWarm
			_, err = Build(c.m, c.r, dir, 1)
			refusal(t, err, placement.CodeNoWarm, "start=warm", c.want)
		})
	}
	same := placement.Request{Model: "m", Start: placement.StartWarm, Env: map[string]string{"OMP_NUM_THREADS": "2"}, Args: []string{"-tp=1"}}
	if s, err := Build(vllm(), same, dir, 1); err != nil || s.Cold || !maps.Equal(s.Env, ownSockets) {
		t.Errorf("what is so anyway made a start cold: %+v %v", s, err)
	}
	asked := placement.Request{Model: "m", Start: placement.StartCold}
	if s, err := Build(vllm(), asked, dir, 1); err != nil || !s.Cold || s.ColdReason != "cold start asked for" {
		t.Errorf("%+v %v", s, err)
	}
}

func TestACommandsSlotsAreFilledInPlace(t *testing.T) {
	s, err := Build(command(), placement.Request{Model: "tiny", Name: "served"}, "/models/a b", 8123)
	if want := []string{"/bin/serve", "--port=8123", "/models/a b", "served", "x8123y"}; err != nil || !slices.Equal(s.ServeArgv, want) {
		t.Errorf("%q, %v; want %q", s.ServeArgv, err, want)
	}
	// A model that is named like a slot is not filled in again.
	s, err = Build(command(), placement.Request{Model: "m", Name: "n"}, "/m/{port}", 1)
	if err != nil || s.ServeArgv[2] != "/m/{port}" {
		t.Errorf("%q, %v", s.ServeArgv, err)
	}
	_, err = Build(command(), placement.Request{Model: "m", Args: []string{"--seed=1"}}, "/m", 1)
	refusal(t, err, placement.CodeArgRefused, "--seed", "knows no arguments")
	s, err = Policy{AllowArgs: []string{"--seed"}}.Build(command(), placement.Request{Model: "m", Args: []string{"--seed=1"}}, "/m", 1)
	if err != nil || s.ServeArgv[len(s.ServeArgv)-1] != "--seed=1" {
		t.Errorf("%q, %v", s.ServeArgv, err)
	}
	_, err = Build(command(), placement.Request{Model: "m", Env: map[string]string{"OMP_NUM_THREADS": "1"}}, "/m", 1)
	refusal(t, err, placement.CodeArgRefused, "OMP_NUM_THREADS", "allow_env")
}

func TestVariablesOutsideTheListAreRefusedByName(t *testing.T) {
	for key, word := range map[string]string{
		"LD_PRELOAD": "loads code", "LD_LIBRARY_PATH": "loads code", "PYTHONPATH": "loads code", "PYTHONSTARTUP": "loads code",
		"VLLM_PLUGINS": "loads code", "PATH": "which programs", "HOME": "its own", "CUDA_VISIBLE_DEVICES": "slot", "NOTIFY_SOCKET": "systemd",
		"LISTEN_FDS": "systemd", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "traces", "VLLM_API_KEY": "not on this node's list",
		"HF_TOKEN": "not on this node's list", "VLLM_SERVER_DEV_MODE": "run code", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "name folders", "VLLM_ALLOW_INSECURE_SERIALIZATION": "run code", "WHATEVER": "not on this node's list",
	} {
		t.Run(key, func(t *testing.T) {
			r := placement.Request{Model: "m", Env: map[string]string{key: "x"}}
			_, err := Build(vllm(), r, "/m", 1)
			e := refusal(t, err, placement.CodeArgRefused, key, word)
			if e != nil && e.Field != "env."+key {
				t.Errorf("field %q", e.Field)
			}
			_, err = Policy{AllowEnv: []string{key}}.Build(vllm(), r, "/m", 1)
			if strings.Contains(word, "not on") != (err == nil) {
				t.Errorf("with allow_env: %v", err)
			}
		})
	}
}

func TestSlotsOutOfRangeAreRefused(t *testing.T) {
	good := placement.Request{Model: "m"}
	for name, c := range map[string]struct {
		r    placement.Request
		dir  string
		port int
		code placement.Code
	}{
		"relative folder": {good, "m", 1, placement.CodeModelInvalid},
		"newline":         {good, "/m\n--x", 1, placement.CodeModelInvalid},
		"port 0":          {good, "/m", 0, placement.CodeInternal},
		"port high":       {good, "/m", 70000, placement.CodeInternal},
		"name with space": {placement.Request{Model: "/models/a b"}, "/m", 1, placement.CodeBadRequest},
		"name a flag":     {placement.Request{Model: "/models/-x"}, "/m", 1, placement.CodeBadRequest},
		"no model":        {placement.Request{}, "/m", 1, placement.CodeBadRequest},
		"many args":       {placement.Request{Model: "m", Args: make([]string, 65)}, "/m", 1, placement.CodeBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Build(vllm(), c.r, c.dir, c.port)
			refusal(t, err, c.code)
		})
	}
}

func FuzzNothingReachesAStartOutsideTheSlots(f *testing.F) {
	f.Add("m", "n", "--seed=1", "OMP_NUM_THREADS", "1")
	f.Add("/m", "", "--host", "LD_PRELOAD", "/x.so")
	f.Add("-x", "--port", "--", "VLLM_CPU_KVCACHE_SPACE", "a\nb")
	f.Fuzz(func(t *testing.T, model, name, arg, key, value string) {
		r := placement.Request{Model: model, Name: name, Args: []string{arg}, Env: map[string]string{key: value}}
		s, err := Build(vllm(), r, "/models/m", 8000)
		if err != nil {
			if _, ok := errors.AsType[*placement.Error](err); !ok {
				t.Fatalf("%v is no refusal", err)
			}
			return
		}
		served := r.ServedName()
		for i, a := range s.Argv {
			switch {
			case slices.Contains([]string{"--model", "/models/m", servedName, "--host=127.0.0.1", "--port=8000"}, a):
			case i == 3 && a == served && servedRE.MatchString(a):
			case i == 4 && !strings.HasPrefix(a, "-") && servedRE.MatchString(a): // an alias
			default:
				base, v, has := strings.Cut(a, "=")
				o, ok := allowed[positive(base)]
				if !strings.HasPrefix(a, "-O") && (!ok || (has && base != chatTemplate && o.check(v) != nil)) {
					t.Fatalf("%q reached argv", a)
				}
			}
		}
		for _, kv := range s.FullEnv {
			k, v, _ := strings.Cut(kv, "=")
			if have, ok := vllm().Env[k]; (!ok || have != v) && !slices.Contains(envAllowed, k) && ownSockets[k] != v {
				t.Fatalf("%q reached the environment", kv)
			}
		}
		for k := range s.Env {
			if !s.Cold && runtime.ImportTime(k) {
				t.Fatalf("%s is too late for a parked worker", k)
			}
		}
	})
}

func TestRuntimeWithoutACompilerStartsEagerUnlessTheRequestDecides(t *testing.T) {
	dir := t.TempDir()
	off := runtime.Manifest{Name: "v", Kind: runtime.KindVLLM, Python: "/v/bin/python", Env: map[string]string{"TORCHDYNAMO_DISABLE": "1"}}
	on := off
	on.Env = nil
	for _, c := range []struct {
		m    runtime.Manifest
		args []string
		want int
	}{
		{off, nil, 1}, {off, []string{"--enforce-eager"}, 1}, {off, []string{"--no-enforce-eager"}, 0}, {off, []string{"-O0"}, 0}, {on, nil, 0},
	} {
		s, err := Build(c.m, placement.Request{Model: "m", Args: c.args}, dir, 8000)
		if err != nil {
			t.Fatal(err)
		}
		for form, argv := range map[string][]string{"parked": s.Argv, "cold": s.ServeArgv} {
			n := 0
			for _, a := range argv {
				if a == "--enforce-eager" {
					n++
				}
			}
			if n != c.want {
				t.Errorf("%s start with args %v: --enforce-eager %d times in %v, want %d", form, c.args, n, argv, c.want)
			}
		}
	}
}

func TestAnEnginesOwnSocketsStayOnLoopbackUnlessTheRuntimeSaysOtherwise(t *testing.T) {
	m := vllm()
	m.Env["GLOO_SOCKET_IFNAME"] = "eth7"
	s, err := Policy{AllowEnv: []string{"VLLM_HOST_IP"}}.Build(m, placement.Request{Model: "m", Env: map[string]string{"VLLM_HOST_IP": "10.0.0.9"}}, "/m", 1)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"VLLM_HOST_IP": "10.0.0.9", "NCCL_SOCKET_IFNAME": "lo"}; !maps.Equal(s.Env, want) {
		t.Errorf("env %v, want %v", s.Env, want)
	}
	for _, kv := range []string{"GLOO_SOCKET_IFNAME=eth7", "NCCL_SOCKET_IFNAME=lo", "VLLM_HOST_IP=10.0.0.9"} {
		if !slices.Contains(s.FullEnv, kv) {
			t.Errorf("no %s in %q", kv, s.FullEnv)
		}
	}
	if s, err = Build(command(), placement.Request{Model: "m"}, "/m", 1); err != nil || len(s.Env) != 0 {
		t.Errorf("a command got %v, %v", s.Env, err)
	}
}

func TestEveryEngineIsToldTheEndpointsAddressAndNoOther(t *testing.T) {
	p := Policy{Host: "10.0.0.5", AllowArgs: []string{"--host", "--port", "--uds", "host", "--trust-remote-code"}}
	s, err := p.Build(vllm(), placement.Request{Model: "m"}, "/m", 8123)
	if err != nil {
		t.Fatal(err)
	}
	for form, argv := range map[string][]string{"parked": s.Argv, "cold": s.ServeArgv} {
		if !slices.Contains(argv, "--host=10.0.0.5") || !slices.Contains(argv, "--port=8123") {
			t.Errorf("%s: %q", form, argv)
		}
	}
	for _, arg := range []string{"--host=0.0.0.0", "--uds=/tmp/x", "--port=1", "--h", "--hos=0.0.0.0"} {
		_, err = p.Build(vllm(), placement.Request{Model: "m", Args: []string{arg}}, "/m", 8123)
		refusal(t, err, placement.CodeArgRefused)
	}
	m := command()
	m.Command = []string{"/bin/serve", "--host={host}", "{host}:{port}"}
	s, err = p.Build(m, placement.Request{Model: "m"}, "/m", 8123)
	if want := []string{"/bin/serve", "--host=10.0.0.5", "10.0.0.5:8123"}; err != nil || !slices.Equal(s.ServeArgv, want) {
		t.Errorf("%q, %v", s.ServeArgv, err)
	}
}

// TestWhatRunsCodeIsRefusedUnlessAllowedByName is the rule for operators, argument by
// argument: none of them without a list, each with its own name on it, none with others'.
func TestWhatRunsCodeIsRefusedUnlessAllowedByName(t *testing.T) {
	dir := tempDir(t)
	for _, arg := range []string{
		"--trust-remote-code", "--trust_remote_code", "--worker-extension-cls=x.Y", "--worker-cls=x.Y", "--scheduler-cls=x.Y", "--middleware=x.y",
		"--logits-processors=x:Y", "--io-processor-plugin=x", "--tool-parser-plugin=/tmp/x.py", "--reasoning-parser-plugin=/tmp/x.py",
		"--distributed-executor-backend=x.Y", "--model-impl=transformers", "--hf-overrides={}", "--compilation-config={}", "--additional-config={}",
		"--model-loader-extra-config={}", "--download-dir=/tmp", "--tokenizer=/elsewhere", "--hf-config-path=/elsewhere", "--lora-modules=a=/elsewhere",
		"--speculative-config={}", "--load-format=pt", "--load-format=x.Loader", "--chat-template=/etc/passwd", "--generation-config=/elsewhere",
		"--config=/elsewhere.yaml", "--allowed-local-media-path=/", "--log-config-file=/x", "--profiler-config={}", "--tool-server=h:1",
	} {
		r := placement.Request{Model: "m", Args: []string{arg}}
		_, err := Build(vllm(), r, dir, 1)
		refusal(t, err, placement.CodeArgRefused)
		name, _, _ := strings.Cut(strings.ReplaceAll(arg, "_", "-"), "=")
		_, err = Policy{AllowArgs: []string{"--no-such", name + "x", strings.TrimPrefix(name, "--") + "x"}}.Build(vllm(), r, dir, 1)
		refusal(t, err, placement.CodeArgRefused)
		if name == chatTemplate {
			continue // a template is a file of the model's folder, whoever allows it
		}
		if _, err = (Policy{AllowArgs: []string{name}}).Build(vllm(), r, dir, 1); err != nil {
			t.Errorf("allowed by name: %v", err)
		}
	}
}

func TestASizeOfTheKVCacheInTheRequestWinsOverTheRuntimesDefault(t *testing.T) {
	m := runtime.Manifest{Name: "v", Kind: runtime.KindVLLM, Python: "/r/v/venv/bin/python", Env: map[string]string{"VLLM_CPU_KVCACHE_SPACE": "1"}}
	for args, kept := range map[string]bool{"--max-model-len=512": true, "--kv-cache-memory-bytes=128M": false, "--kv_cache_memory_bytes=128M": false} {
		s, err := Build(m, placement.Request{Model: "m", Name: "m", Args: []string{args}}, "/models/m", 8000)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(s.FullEnv, "VLLM_CPU_KVCACHE_SPACE=1") != kept {
			t.Errorf("%s: %q", args, s.FullEnv)
		}
	}
}
