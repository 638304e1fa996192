package runtime

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func codes(found []Finding) (out []string) {
	for _, f := range found {
		out = append(out, f.Code)
	}
	return out
}

func TestCheckNamesWhatIsWrongAndWhatToDo(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(f *fake, m *Manifest)
		codes []string
		words []string
		fixed bool // whether Fix makes it right
	}{
		"nothing": {func(*fake, *Manifest) {}, nil, nil, true},
		"a new torch": {func(f *fake, _ *Manifest) { f.answer(map[string]any{"torch": "2.14.0"}) },
			[]string{"profile_key"}, []string{"torch was 2.13.0, is 2.14.0", "warmd runtime check v --fix"}, true},
		"a new vllm": {func(f *fake, _ *Manifest) { f.answer(map[string]any{"vllm": "0.33.0+cpu"}) },
			[]string{"profile_key"}, []string{"vLLM was 0.32.0, is 0.33.0"}, false},
		"a new plugin": {func(f *fake, _ *Manifest) { f.answer(map[string]any{"plugins": []string{"vllm.general_plugins:c=d"}}) },
			[]string{"profile_key"}, []string{"new plugin vllm.general_plugins:c=d", "plugin vllm.general_plugins:a=b is gone"}, true},
		"an edited env": {func(_ *fake, m *Manifest) { m.Env["OMP_NUM_THREADS"] = "9999" },
			[]string{"profile_key"}, []string{"was edited"}, true},
		"an older warmd's env": {func(_ *fake, m *Manifest) {
			delete(m.Env, "JE_ARROW_MALLOC_CONF")
			m.ImportEnv = importEnv(m.Env)
			m.ProfileKey = ProfileKeyOf(*m)
		},
			[]string{"environment"}, []string{"lacks JE_ARROW_MALLOC_CONF", "--fix"}, true},
		"no bytecode": {func(f *fake, _ *Manifest) { f.answer(map[string]any{"uncompiled": 90}) },
			[]string{"bytecode"}, []string{"90 of 100", "--fix"}, true},
		"a few without bytecode": {func(f *fake, _ *Manifest) { f.answer(map[string]any{"uncompiled": 2}) }, nil, nil, true},
		"no profile": {func(_ *fake, m *Manifest) { _ = os.Remove(m.Path(m.Profile)) },
			[]string{"profile"}, []string{"no import profile (no such file or directory)"}, true},
		"a damaged profile": {func(_ *fake, m *Manifest) { _ = os.WriteFile(m.Path(m.Profile), []byte("{"), 0o644) },
			[]string{"profile"}, []string{"damaged"}, true},
		"another version's profile": {func(_ *fake, m *Manifest) { _ = os.WriteFile(m.Path(m.Profile), []byte(`{"version":"0.26.0"}`), 0o644) },
			[]string{"profile"}, []string{"0.26.0"}, true},
		"an empty profile": {func(_ *fake, m *Manifest) { _ = os.WriteFile(m.Path(m.Profile), []byte(`{"version":"0.32.0"}`), 0o644) },
			[]string{"profile"}, []string{"is empty"}, true},
		"cold caches": {func(_ *fake, m *Manifest) { _ = os.RemoveAll(m.Env["VLLM_CACHE_ROOT"]) },
			[]string{"caches"}, []string{"20 s longer"}, true},
		"no tracing": {func(f *fake, _ *Manifest) {
			f.answer(map[string]any{"no_tracing": []string{"opentelemetry.sdk.trace"}})
		},
			[]string{"tracing"}, []string{"opentelemetry.sdk.trace", "pip install"}, false},
		"missing files": {func(f *fake, _ *Manifest) {
			f.answer(map[string]any{"damaged": []string{"/x/torch.so"}, "damaged_count": 3})
		},
			[]string{"files"}, []string{"3 installed files", "/x/torch.so", "runtime rm v"}, false},
		"no engine": {func(f *fake, _ *Manifest) { f.answer(map[string]any{"package": false}) }, []string{"engine"}, []string{"no package vllm"}, false},
		"no interpreter": {func(_ *fake, m *Manifest) { _ = os.Remove(m.Python) },
			[]string{"python"}, []string{"cannot be used", "no such file", "runtime rm v"}, false},
		"a broken interpreter": {func(_ *fake, m *Manifest) { _ = os.WriteFile(m.Python, []byte("#!/bin/sh\nexit 127\n"), 0o755) },
			[]string{"python"}, []string{"does not run", "exit status 127"}, false},
		"a python that the script dislikes": {func(f *fake, _ *Manifest) {
			f.write("facts.json", `{"facts":[{"name":"device","ok":false,"problem":"no GPU is visible","cure":"use another host"},{"name":"bytecode","ok":false}]}`, 0o644)
		}, []string{"device"}, []string{"no GPU is visible", "use another host"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.named()
			m, err := f.add(f.options())
			if err != nil {
				t.Fatal(err)
			}
			c.spoil(f, &m)
			found, err := Check(t.Context(), m)
			if err != nil || !slices.Equal(codes(found), c.codes) {
				t.Fatalf("found %+v, %v; want %q", found, err, c.codes)
			}
			raw, _ := json.Marshal(found)
			for _, w := range c.words {
				if !strings.Contains(string(raw), w) {
					t.Errorf("%s does not say %q", raw, w)
				}
			}
			for _, x := range found {
				if x.Cure == "" {
					t.Errorf("%s has no cure", x.Code)
				}
			}
			m.Root = f.root
			if m, err = Fix(t.Context(), m, found, nil); err != nil {
				t.Fatal(err)
			}
			found, err = Check(t.Context(), m)
			if err != nil || (len(found) == 0) != c.fixed {
				t.Errorf("after Fix: %+v, %v", found, err)
			}
			if c.fixed {
				if got, err := Load(filepath.Join(f.root, "v")); err != nil || got.ProfileKey != m.ProfileKey {
					t.Errorf("the manifest on disk is another: %v", err)
				}
			}
		})
	}
}

func TestFixLeavesAnAdoptedVenvAlone(t *testing.T) {
	f := newFake(t)
	f.named()
	f.write("theirs", fakePython, 0o755)
	m, err := Add(t.Context(), AddOptions{Root: f.root, Name: "v", Python: filepath.Join(f.home, "theirs")})
	if err != nil {
		t.Fatal(err)
	}
	m.Root = f.root
	found, err := Check(t.Context(), m)
	if err != nil || !slices.Equal(codes(found), []string{"bytecode"}) || found[0].Fixable || !strings.Contains(found[0].Cure, "compileall") {
		t.Fatalf("%+v %v", found, err)
	}
	if _, err := Fix(t.Context(), m, found, nil); err != nil || f.calls("compileall") != 0 {
		t.Fatalf("%v, compiled %d times", err, f.calls("compileall"))
	}
}

func TestAFailedFixKeepsTheRuntime(t *testing.T) {
	f := newFake(t)
	f.named()
	m, err := f.add(f.options())
	if err != nil {
		t.Fatal(err)
	}
	m.Root = f.root
	f.write("fail-rehearse", "", 0o644)
	_, err = Fix(t.Context(), m, []Finding{{Code: "profile", Fixable: true}}, nil)
	says(t, err, "fix runtime v", "no answer", "rehearse.log")
	if found, err := Check(t.Context(), m); err != nil || len(found) != 0 {
		t.Fatalf("%+v %v", found, err)
	}
	if names := f.shown(); len(names) != 1 {
		t.Errorf("List shows %q", names)
	}
}
