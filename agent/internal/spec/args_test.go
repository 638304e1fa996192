package spec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"warmd/placement"
)

func TestHarmlessArgumentsArePassedOnCanonically(t *testing.T) {
	dir := folder(t, map[string]string{"chat.jinja": "{{ x }}"})
	for _, c := range []struct{ in, want []string }{
		{[]string{"--max-model-len=512"}, []string{"--max-model-len=512"}},
		{[]string{"--max-model-len", "512"}, []string{"--max-model-len=512"}},
		{[]string{"--max_model_len=4k"}, []string{"--max-model-len=4k"}},
		{[]string{"--max-model-len=-1"}, []string{"--max-model-len=-1"}},
		{[]string{"--max-model-len", "-1"}, []string{"--max-model-len=-1"}},
		{[]string{"--enforce-eager", "--no-enable-prefix-caching"}, []string{"--enforce-eager", "--no-enable-prefix-caching"}},
		{[]string{"--no_enable_prefix_caching"}, []string{"--no-enable-prefix-caching"}},
		{[]string{"-O0"}, []string{"-O0"}},
		{[]string{"-O=3"}, []string{"-O3"}},
		{[]string{"-O", "1"}, []string{"-O1"}},
		{[]string{"--optimization-level=2"}, []string{"-O2"}},
		{[]string{"-q", "fp8"}, []string{"--quantization=fp8"}},
		{[]string{"-tp=1"}, []string{"--tensor-parallel-size=1"}},
		{[]string{"--gpu-memory-utilization=0.9"}, []string{"--gpu-memory-utilization=0.9"}},
		{[]string{"--load-format", "dummy"}, []string{"--load-format=dummy"}},
		{[]string{`--limit-mm-per-prompt={"image": 2, "video":0}`}, []string{`--limit-mm-per-prompt={"image": 2, "video":0}`}},
		{[]string{"--tool-call-parser=hermes", "--enable-auto-tool-choice"}, []string{"--tool-call-parser=hermes", "--enable-auto-tool-choice"}},
		{[]string{"--chat-template=chat.jinja"}, []string{"--chat-template=" + filepath.Join(dir, "chat.jinja")}},
		{[]string{"--chat-template", filepath.Join(dir, "chat.jinja")}, []string{"--chat-template=" + filepath.Join(dir, "chat.jinja")}},
	} {
		got, err := parseArgs(c.in, nil, dir)
		if err != nil || !slices.Equal(got.argv, c.want) {
			t.Errorf("%q became %q, %v; want %q", c.in, got.argv, err, c.want)
		}
	}
}

func TestArgumentsOutsideTheAllowlistAreRefusedByName(t *testing.T) {
	dir := folder(t, map[string]string{"in.jinja": "x"})
	out := folder(t, map[string]string{"secret": "x"})
	link(t, filepath.Join(out, "secret"), filepath.Join(dir, "escape.jinja"))
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"--trust-remote-code"}, []string{"--trust-remote-code", "runs Python code", `allow_args = ["--trust-remote-code"]`}},
		{[]string{"--trust_remote_code"}, []string{"--trust-remote-code", "runs Python code"}},
		{[]string{"--trust-remote"}, []string{"not on this node's list"}},    // an abbreviation
		{[]string{"--trust-remote-code=true"}, []string{"runs Python code"}}, //
		{[]string{"--worker-extension-cls=os.system"}, []string{"imports a class"}},
		{[]string{"--worker-cls", "x"}, []string{"imports a class"}},
		{[]string{"--middleware=x"}, []string{"imports code"}},
		{[]string{"--logits-processors", "x"}, []string{"imports classes"}},
		{[]string{"--io-processor-plugin=x"}, []string{"plugin"}},
		{[]string{"--tool-parser-plugin=/tmp/x.py"}, []string{"Python file"}},
		{[]string{"--reasoning-parser-plugin=/tmp/x.py"}, []string{"Python file"}},
		{[]string{"--load-format=pt"}, []string{"takes one of", "safetensors", "allow_args"}},
		{[]string{"--load-format", "tensorizer"}, []string{"takes one of"}},
		{[]string{"--allowed-local-media-path=/"}, []string{"read files of this host"}},
		{[]string{"--api-key=s3cret"}, []string{"VLLM_API_KEY"}},
		{[]string{"--host=0.0.0.0"}, []string{"cannot be given", "endpoint"}},
		{[]string{"--port", "80"}, []string{"cannot be given"}},
		{[]string{"--uds=/tmp/s"}, []string{"cannot be given"}},
		{[]string{"--model=/etc"}, []string{"cannot be given"}},
		{[]string{"--ssl-keyfile=/etc/x"}, []string{"endpoint is warmd's"}},
		{[]string{"--otlp-traces-endpoint=http://x"}, []string{"traces"}},
		{[]string{"--config=/tmp/x.yaml"}, []string{"from a file"}},
		{[]string{"--headless"}, []string{"exactly one API server"}},
		{[]string{"--api-server-count=2"}, []string{"exactly one API server"}},
		{[]string{"--speculative-config={}"}, []string{"another model folder"}},
		{[]string{"--compilation-config={}"}, []string{"-O0"}},
		{[]string{"--compilation-config.mode=3"}, []string{"not on this node's list"}},
		{[]string{"--seed.x=3"}, []string{"not on this node's list"}},
		{[]string{"--data-parallel-size=2"}, []string{"one engine"}},
		{[]string{"--no-trust-remote-code=1"}, []string{"runs Python code"}},
		{[]string{"--no-such-thing"}, []string{"not on this node's list", "spelling"}},
		{[]string{"--"}, []string{"cannot be given"}},
		{[]string{"-h"}, []string{"cannot be given"}},
		{[]string{"model"}, []string{"is not an option"}},
		{[]string{"--enforce-eager", "true"}, []string{"is not an option"}},
		{[]string{"--enforce-eager=true"}, []string{"takes no value", "--no-enforce-eager"}},
		{[]string{"--no-no-enforce-eager"}, []string{"not on"}},
		{[]string{"--no-seed"}, []string{"not on"}},
		{[]string{"--no-disable-log-stats"}, []string{"not on"}},
		{[]string{"--seed"}, []string{"needs a value"}},
		{[]string{"--seed", "--enforce-eager"}, []string{"takes a whole number"}},
		{[]string{"--seed=1", "--seed=2"}, []string{"given twice"}},
		{[]string{"--enforce-eager", "--no-enforce-eager"}, []string{"given twice"}},
		{[]string{"-tp=1", "--tensor_parallel_size=1"}, []string{"given twice"}},
		{[]string{"--max-model-len=12; rm -rf /"}, []string{"whole number"}},
		{[]string{"--gpu-memory-utilization=NaN"}, []string{"up to 1"}},
		{[]string{"--gpu-memory-utilization=1.5"}, []string{"up to 1"}},
		{[]string{"-O7"}, []string{"takes one of"}},
		{[]string{"-O0 --trust-remote-code"}, []string{"takes one of"}},
		{[]string{"-O"}, []string{"needs a value"}},
		{[]string{"-Odecode"}, []string{"takes one of"}},
		{[]string{"--generation-config=/etc"}, []string{"takes one of"}},
		{[]string{"--quantization=../x"}, []string{"one word"}},
		{[]string{"--chat-template=../secret"}, []string{"not inside the model folder"}},
		{[]string{"--chat-template=/etc/passwd"}, []string{"not inside the model folder"}},
		{[]string{"--chat-template=/etc/no-such-file"}, []string{"not inside the model folder"}},
		{[]string{"--chat-template=escape.jinja"}, []string{"not inside the model folder"}},
		{[]string{"--chat-template=gone.jinja"}, []string{"no such file"}},
		{[]string{"--chat-template={{ x }}"}, []string{"no such file"}},
		{[]string{"--chat-template=."}, []string{"not a file"}},
		{[]string{"--chat-template="}, []string{"empty"}},
		{[]string{"--served-model-name=--host"}, []string{"takes a name"}},
		{[]string{"--limit-mm-per-prompt={\"a\": {}}"}, []string{"counts"}},
	} {
		t.Run(strings.ReplaceAll(strings.Join(c.args, " "), "/", "_"), func(t *testing.T) {
			_, err := parseArgs(c.args, nil, dir)
			e := refusal(t, err, placement.CodeArgRefused, c.words...)
			if e != nil && !strings.HasPrefix(e.Field, "args[") {
				t.Errorf("field %q", e.Field)
			}
		})
	}
}

func TestAnOperatorAllowsMore(t *testing.T) {
	dir := tempDir(t)
	extra := []string{"--trust-remote-code", "load_format", "--hf-overrides"}
	for _, c := range []struct{ in, want []string }{
		{[]string{"--trust-remote-code"}, []string{"--trust-remote-code"}},
		{[]string{"--trust_remote_code"}, []string{"--trust_remote_code"}},
		{[]string{"--no-trust-remote-code"}, []string{"--no-trust-remote-code"}},
		{[]string{"--load-format", "pt"}, []string{"--load-format=pt"}},
		{[]string{`--hf-overrides={"a": 1}`, "--seed=1"}, []string{`--hf-overrides={"a": 1}`, "--seed=1"}},
	} {
		got, err := parseArgs(c.in, extra, dir)
		if err != nil || !slices.Equal(got.argv, c.want) {
			t.Errorf("%q became %q, %v; want %q", c.in, got.argv, err, c.want)
		}
	}
	// What warmd gives itself cannot be allowed, and one name allows one option.
	_, err := parseArgs([]string{"--port=1"}, []string{"--port"}, dir)
	refusal(t, err, placement.CodeArgRefused, "cannot be given")
	_, err = parseArgs([]string{"--hf-token=x"}, extra, dir)
	refusal(t, err, placement.CodeArgRefused, "secret")
	// We do not know whether an unknown option takes a value, so = is the one form.
	_, err = parseArgs([]string{"--hf-overrides", "{}"}, extra, dir)
	refusal(t, err, placement.CodeArgRefused, "--name=value")
}

func TestEveryRefusedOptionIsNotAllowed(t *testing.T) {
	for name := range allowed {
		if w := why(name); w != "" && name != chatTemplate {
			t.Errorf("%s is allowed and refused: %s", name, w)
		}
		if _, ok := reserved[name]; ok {
			t.Errorf("%s is allowed and reserved", name)
		}
		if name != strings.ToLower(name) || strings.Contains(name, "_") || !strings.HasPrefix(name, "--") {
			t.Errorf("%s is not a canonical name", name)
		}
		if strings.HasPrefix(name, "--no-") {
			t.Errorf("%s: list the switch, not its negation", name)
		}
	}
	for from, to := range short {
		if _, ok := allowed[to]; !ok {
			t.Errorf("%s stands for %s, which is not allowed", from, to)
		}
	}
}

func FuzzNothingReachesArgvOutsideTheSlots(f *testing.F) {
	for _, s := range []string{
		"--seed=1\n--enforce-eager", "--max-model-len\n12", "-O0", "-O\n2", "--no-enable-prefix-caching", "--served-model-name=a\n--served-model-name=b",
		"--chat-template=x.jinja", "--trust-remote-code", "--seed=--host", "--dtype=auto\x00", "--max_num_seqs=4", "-tp=2", "---seed=1", "--=1", "--no-", "-",
	} {
		f.Add(s)
	}
	dir := f.TempDir()
	_ = os.WriteFile(filepath.Join(dir, "x.jinja"), []byte("x"), 0o644)
	f.Fuzz(func(t *testing.T, joined string) {
		in := strings.Split(joined, "\n")
		got, err := parseArgs(in, nil, dir)
		if err != nil {
			refusal(t, err, placement.CodeArgRefused)
			return
		}
		for _, a := range got.argv {
			if level, ok := strings.CutPrefix(a, "-O"); ok {
				if !strings.Contains("0123", level) || len(level) != 1 {
					t.Fatalf("%q let %q through", in, a)
				}
				continue
			}
			name, value, has := strings.Cut(a, "=")
			o, known := allowed[positive(name)]
			switch {
			case !known:
				t.Fatalf("%q let the option %q through", in, a)
			case o.check == nil && has, o.check != nil && !has:
				t.Fatalf("%q let the form %q through", in, a)
			case has && name != chatTemplate && o.check(value) != nil:
				t.Fatalf("%q let the value %q through", in, a)
			}
		}
		for _, n := range got.aliases {
			if !servedRE.MatchString(n) {
				t.Fatalf("%q let the name %q through", in, n)
			}
		}
	})
}
