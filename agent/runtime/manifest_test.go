package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goodManifest = `{"name":"v","kind":"vllm","engine":"vllm","version":"0.32.0","python":"/p","device":"cpu","env":{"B":"2","A":"1"},"created":"2026-01-02T03:04:05Z"}`

func writeRuntime(t *testing.T, root, name, body string) string {
	t.Helper()
	dir := filepath.Join(root, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if body != "" {
		if err := os.WriteFile(filepath.Join(dir, manifestFile), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAManifestIsReadBackAsItWasWritten(t *testing.T) {
	dir := writeRuntime(t, t.TempDir(), "v", goodManifest)
	m, err := Load(dir)
	if err != nil || m.Env["A"] != "1" || m.Version != "0.32.0" || m.Root != filepath.Dir(dir) {
		t.Fatalf("%+v %v", m, err)
	}
	if env := m.Environ(); len(env) != 2 || env[0] != "A=1" || env[1] != "B=2" {
		t.Errorf("%q", env)
	}
	if m.Path("x") != filepath.Join(m.Dir, "x") || m.Path("/x") != "/x" || m.Path("") != "" {
		t.Error("paths")
	}
	if err := m.save(filepath.Join(dir, manifestFile)); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir)
	if err != nil || again.Created != m.Created || again.Env["B"] != "2" {
		t.Fatalf("%+v %v", again, err)
	}
}

// TestAManifestOfTheNextVersionIsRead: runtimes outlive a downgrade.
func TestAManifestOfTheNextVersionIsRead(t *testing.T) {
	later := strings.Replace(goodManifest, `{"name"`, `{"later":{"x":[1]},"name"`, 1)
	m, err := Load(writeRuntime(t, t.TempDir(), "v", later))
	if err != nil || m.Env["A"] != "1" || m.Python != "/p" {
		t.Fatalf("%+v %v", m, err)
	}
}

func TestWhatIsNoRuntimeIsAProblemThatSaysWhatToDo(t *testing.T) {
	for name, c := range map[string]struct{ body, message string }{
		"unfinished":            {"", "was not finished"},
		"no json":               {"{", "is damaged"},
		"truncated":             {goodManifest[:40], "is damaged"},
		"another name":          {strings.Replace(goodManifest, `"v"`, `"w"`, 1), `names runtime "w"`},
		"relative python":       {strings.Replace(goodManifest, `/p`, `p`, 1), "not an absolute path"},
		"unknown kind":          {strings.Replace(goodManifest, `"kind":"vllm"`, `"kind":"x"`, 1), "unknown kind"},
		"unknown device":        {strings.Replace(goodManifest, `"cpu"`, `"tpu"`, 1), "neither cpu nor cuda"},
		"development endpoints": {strings.Replace(goodManifest, `"env":{`, `"env":{"VLLM_SERVER_DEV_MODE":"1",`, 1), "VLLM_SERVER_DEV_MODE, which is never set"},
		"no command":            {`{"name":"v","kind":"exec"}`, "without a command"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir := writeRuntime(t, root, "v", c.body)
			_, err := Load(dir)
			p, ok := errors.AsType[Problem](err)
			if !ok || !strings.Contains(p.Message, c.message) || p.Cure == "" || p.Name != "v" {
				t.Errorf("%+v %v", p, err)
			}
			writeRuntime(t, root, "w", strings.Replace(goodManifest, `"v"`, `"w"`, 1))
			have, bad, err := List(root)
			if err != nil || len(have) != 1 || have[0].Name != "w" || len(bad) != 1 {
				t.Errorf("List: %v %v %v", have, bad, err)
			}
		})
	}
}

func TestListIgnoresWhatIsNoFolderAndAMissingRoot(t *testing.T) {
	root := t.TempDir()
	_ = os.WriteFile(filepath.Join(root, "README"), nil, 0o644)
	_ = os.Mkdir(filepath.Join(root, ".tools"), 0o755)
	for _, r := range []string{root, filepath.Join(root, "none")} {
		if have, bad, err := List(r); err != nil || len(have)+len(bad) != 0 {
			t.Errorf("%v %v %v", have, bad, err)
		}
	}
	if _, _, err := List(filepath.Join(root, "README")); err == nil {
		t.Error("a file was listed")
	}
}

func TestTheDefaultRootFollowsItsRule(t *testing.T) {
	t.Setenv("WARMD_RUNTIMES", "/w")
	if got := DefaultRoot(); got != "/w" {
		t.Error(got)
	}
	t.Setenv("WARMD_RUNTIMES", "")
	t.Setenv("XDG_DATA_HOME", "/data")
	want := "/data/warmd/runtimes"
	if os.Geteuid() == 0 {
		want = "/var/lib/warmd/runtimes"
	}
	if got := DefaultRoot(); got != want {
		t.Error(got)
	}
}
