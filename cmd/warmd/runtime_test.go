package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"warmd/agent/runtime"
)

// tryRuntime runs a command line of `warmd runtime` or `warmd model` in-process.
func tryRuntime(t *testing.T, ctx context.Context, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := &cli.App{
		Name: "warmd", HideHelpCommand: true, ExitErrHandler: func(*cli.Context, error) {}, Writer: &out, ErrWriter: io.Discard,
		Commands: []*cli.Command{runtimeCommand(), modelCommand()},
	}
	err := app.RunContext(ctx, append([]string{"warmd"}, args...))
	return out.String(), err
}

func exitCode(err error) int {
	if e, ok := errors.AsType[cli.ExitCoder](err); ok {
		return e.ExitCode()
	}
	return -1
}

func TestFlagsWorkOnBothSidesOfTheName(t *testing.T) {
	for name, args := range map[string][]string{
		"before":  {"--root", "ROOT", "--device", "cpu", "--env", "A=1", "--env=B=2", "--exec", "x", "--", "sleep", "{port}", "-v"},
		"behind":  {"x", "--root=ROOT", "--device=cpu", "--env", "A=1", "--env", "B=2", "--exec", "--", "sleep", "{port}", "-v"},
		"mixed":   {"--env", "A=1", "x", "--device", "cpu", "--env", "B=2", "--root", "ROOT", "--exec", "--", "sleep", "{port}", "-v"},
		"apart":   {"--exec", "--env", "A=1", "--root", "ROOT", "x", "--env", "B=2", "--device", "cpu", "--", "sleep", "{port}", "-v"},
		"as JSON": {"x", "-o", "json", "--root=ROOT", "--device=cpu", "--env", "A=1", "--env", "B=2", "--exec", "--", "sleep", "{port}", "-v"},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			for i := range args {
				args[i] = strings.Replace(args[i], "ROOT", root, 1)
			}
			out, err := tryRuntime(t, t.Context(), append([]string{"runtime", "add"}, args...)...)
			if err != nil {
				t.Fatal(err)
			}
			m, err := runtime.Load(filepath.Join(root, "x"))
			if err != nil || m.Device != "cpu" || m.Env["A"] != "1" || m.Env["B"] != "2" || !slices.Equal(m.Command[1:], []string{"{port}", "-v"}) {
				t.Errorf("%+v %v", m, err)
			}
			if name == "as JSON" {
				var shown runtime.Manifest
				if err := json.Unmarshal([]byte(out), &shown); err != nil || shown.ProfileKey != m.ProfileKey {
					t.Errorf("%s %v", out, err)
				}
			}
		})
	}
}

func TestWhatARuntimeCommandDoesNotUnderstandIsRefused(t *testing.T) {
	root := t.TempDir()
	for _, c := range []struct {
		line string
		word string
	}{
		{"runtime add", "no NAME"},
		{"runtime add a b --vllm 0.32.0", `unexpected ["b"]`},
		{"runtime add a --bogus", "-bogus"},
		{"runtime add a --vllm", "flag needs an argument"},
		{"runtime add a --exec", "--exec without a command"},
		{"runtime add a -- sleep {port}", "a command without --exec"},
		{"runtime add a --env NOVALUE --exec -- sleep {port}", "KEY=VALUE"},
		{"runtime rm", "no NAME"},
		{"runtime ls extra", `unexpected ["extra"]`},
		{"runtime ls -o yaml", "only json is known"},
		{"model make", "no NAME"},
		{"model make a b", `unexpected ["b"]`},
	} {
		args := strings.Fields(c.line)
		if args[0] == "runtime" {
			args = slices.Insert(args, 2, "--root", root)
		}
		_, err := tryRuntime(t, t.Context(), args...)
		if err == nil || !strings.Contains(err.Error(), c.word) || exitCode(err) != 2 {
			t.Errorf("%s: %v (exit code %d)", c.line, err, exitCode(err))
		}
	}
	if entries, _ := os.ReadDir(root); len(entries) > 0 {
		t.Errorf("left %v", entries)
	}
}

func TestRuntimesAreListedCheckedAndRemoved(t *testing.T) {
	root := t.TempDir()
	t.Setenv("WARMD_RUNTIMES", root) // the same as --root
	for _, name := range []string{"one", "two"} {
		if _, err := tryRuntime(t, t.Context(), "runtime", "add", name, "--exec", "--", "sleep", "{port}"); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := tryRuntime(t, t.Context(), "runtime", "ls", "-o", "json")
	var listed struct {
		Runtimes []struct{ Name, Dir string } `json:"runtimes"`
		Problems []runtime.Problem            `json:"problems"`
	}
	if jerr := json.Unmarshal([]byte(out), &listed); err != nil || jerr != nil || len(listed.Runtimes) != 2 || listed.Runtimes[1].Dir == "" || len(listed.Problems) != 1 {
		t.Fatalf("%s %v %v", out, err, jerr)
	}
	if out, err := tryRuntime(t, t.Context(), "runtime", "ls"); err != nil || !strings.Contains(out, "NAME") || !strings.Contains(out, "two") {
		t.Errorf("%s %v", out, err)
	}
	out, err = tryRuntime(t, t.Context(), "runtime", "check", "one", "two")
	if err != nil || out != "one: ok\ntwo: ok\n" {
		t.Errorf("%q %v", out, err)
	}
	out, err = tryRuntime(t, t.Context(), "runtime", "check")
	if exitCode(err) != 1 || !strings.Contains(out, "half: no runtime.json") || !strings.Contains(out, "  do: run the same") {
		t.Errorf("%q %v", out, err)
	}
	out, err = tryRuntime(t, t.Context(), "runtime", "check", "none", "-o", "json")
	if exitCode(err) != 1 || !strings.Contains(out, "no such runtime") {
		t.Errorf("%q %v", out, err)
	}
	for _, name := range []string{"one", "half"} {
		if _, err := tryRuntime(t, t.Context(), "runtime", "rm", name); err != nil {
			t.Error(err)
		}
	}
	if _, err := tryRuntime(t, t.Context(), "runtime", "rm", "one"); err == nil || !strings.Contains(err.Error(), "there is none") {
		t.Error(err)
	}
}

func TestAnInterruptedAddIsAFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := tryRuntime(t, ctx, "runtime", "add", "x", "--root", t.TempDir(), "--exec", "--", "sleep", "{port}")
	if exitCode(err) != 130 || errors.Is(err, context.Canceled) {
		t.Errorf("%v: main would call that a success", err)
	}
}

func TestModelsAreMadeFromTheCommandLine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	out, err := tryRuntime(t, t.Context(), "model", "make", dir, "--preset", "tiny", "--arch=llama", "--hidden", "64", "-o", "json")
	if err != nil || !strings.Contains(out, `"dir"`) {
		t.Fatalf("%s %v", out, err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil || !strings.Contains(string(raw), "LlamaForCausalLM") || !strings.Contains(string(raw), `"hidden_size": 64`) {
		t.Errorf("%s %v", raw, err)
	}
}

func TestProgressIsPlainLinesWithoutATerminal(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.step(runtime.Step{Phase: "install", Message: "fetching", Elapsed: 1500 * time.Millisecond})
	p.step(runtime.Step{Phase: "install", Message: "no tracing", Elapsed: 2 * time.Second, Warning: true})
	p.end()
	if want := "   1.5s  install   fetching\n   2.0s  warning   no tracing\n"; out.String() != want {
		t.Errorf("%q", out.String())
	}
}

func TestProgressOnATerminalKeepsOneLineAPhase(t *testing.T) {
	var out bytes.Buffer
	p := &stepProgress{w: &out, tty: true, width: 40, began: time.Now(), stop: make(chan struct{})}
	p.step(runtime.Step{Phase: "venv", Message: "a"})
	p.step(runtime.Step{Phase: "venv", Message: strings.Repeat("long ", 20)})
	p.step(runtime.Step{Phase: "install", Message: "b\nc"})
	p.end()
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 3 || lines[2] != "" { // venv, install, and nothing behind the last newline
		t.Fatalf("%q", lines)
	}
	for drawn := range strings.SplitSeq(out.String(), "\r\033[K") {
		if len([]rune(strings.TrimSuffix(drawn, "\n"))) >= 40 {
			t.Errorf("%q wraps", drawn)
		}
	}
}
