package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// adoptedVenv is a venv that has vllm by a .pth file from another folder.
func adoptedVenv(t *testing.T) (r Runtime, elsewhere string) {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("python3", "-m", "venv", "--without-pip", filepath.Join(dir, "venv")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	elsewhere = filepath.Join(dir, "elsewhere")
	for _, p := range []string{"vllm", "torch"} {
		require.NoError(t, os.MkdirAll(filepath.Join(elsewhere, p), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(elsewhere, p, "__init__.py"), []byte("raise SystemExit('imported')\n"), 0o600))
	}
	site, err := filepath.Glob(filepath.Join(dir, "venv/lib/python3*/site-packages"))
	require.NoError(t, err)
	require.Len(t, site, 1)
	require.NoError(t, os.WriteFile(filepath.Join(site[0], "other.pth"), []byte(elsewhere+"\n"), 0o600))
	return Runtime{Name: "rt", Python: filepath.Join(dir, "venv/bin/python"), Env: map[string]string{"PATH": os.Getenv("PATH")}}, elsewhere
}

func TestBytecodeIsLookedForWhereVLLMReallyIs(t *testing.T) {
	r, elsewhere := adoptedVenv(t)
	p, err := AskPython(t.Context(), r)
	require.NoError(t, err)
	require.Len(t, p.Packages, 2)
	assert.Equal(t, Package{Name: "vllm", Dir: filepath.Join(elsewhere, "vllm"), Sources: 1, Uncompiled: 1}, p.Packages[0])
	assert.Contains(t, p.Paths, elsewhere)
	err = p.Compiled(r)
	require.ErrorContains(t, err, "1 of 1 files of vllm in "+elsewhere)
	require.ErrorContains(t, err, "look slower than it is")

	out, err := exec.Command(r.Python, "-m", "compileall", "-q", elsewhere).CombinedOutput()
	require.NoError(t, err, "%s", out)
	p, err = AskPython(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, p.Compiled(r))

	r.Env["PYTHONDONTWRITEBYTECODE"] = "1"
	p, err = AskPython(t.Context(), r)
	require.NoError(t, err)
	require.ErrorContains(t, p.Compiled(r), "PYTHONDONTWRITEBYTECODE")
}

func TestARuntimeWithoutVLLMIsRefused(t *testing.T) {
	require.ErrorContains(t, Python{WritesBytecode: true}.Compiled(Runtime{Name: "rt", Python: "/p"}), "finds no package vllm")
	_, err := AskPython(t.Context(), Runtime{Python: "/nonexistent/python"})
	require.ErrorContains(t, err, "inspect /nonexistent/python")
	_, err = LoadRuntime(t.TempDir(), "none")
	require.ErrorContains(t, err, "read runtime none")
}

func TestPageCacheIsPutIntoTheStateThatWasAskedFor(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Fatal("the page cache is Linux's")
	}
	model, rt := t.TempDir(), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(rt, "lib"), 0o755))
	for _, file := range []string{filepath.Join(model, "weights"), filepath.Join(rt, "lib", "x.so")} {
		f, err := os.Create(file)
		require.NoError(t, err)
		_, err = f.Write(make([]byte, 1<<20))
		require.NoError(t, err)
		require.NoError(t, f.Sync(), "dirty pages are not dropped")
		require.NoError(t, f.Close())
	}
	require.NoError(t, os.WriteFile(filepath.Join(model, "empty"), nil, 0o600))
	require.NoError(t, os.Symlink("/nonexistent", filepath.Join(model, "broken")))

	cold, err := NewPages(PagesCold, model, []string{rt, filepath.Join(rt, "lib"), "/nonexistent"})
	require.NoError(t, err)
	cold.everything = false // not on a machine that others use
	assert.Len(t, cold.Model, 1)
	assert.Len(t, cold.Runtime, 1, "a folder inside another is read once")
	have, err := cold.Before()
	require.NoError(t, err)
	assert.Equal(t, Cached{0, 0}, have)

	warm, err := NewPages(PagesWarm, model, []string{rt})
	require.NoError(t, err)
	have, err = warm.Before()
	require.NoError(t, err)
	assert.Equal(t, Cached{1, 1}, have)

	_, err = NewPages(PagesWarm, filepath.Join(model, "none"), nil)
	require.ErrorContains(t, err, "list files")
}

func TestABusyMachineIsToldOf(t *testing.T) {
	assert.Empty(t, Host{CPUs: 2, Load1: 1}.Busy())
	assert.Contains(t, Host{CPUs: 2, Load1: 1.1}.Busy(), "load 1.1 on 2 cores")
	h := ThisHost()
	assert.Positive(t, h.CPUs)
	assert.Positive(t, h.Memory)
	assert.NotEmpty(t, h.Kernel)
}
