package spec

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"warmd/placement"
)

// refusal asserts that err is a refusal of a code whose text holds all words.
func refusal(t *testing.T, err error, code placement.Code, words ...string) *placement.Error {
	t.Helper()
	e, ok := errors.AsType[*placement.Error](err)
	if !ok {
		t.Fatalf("got %v, want a *placement.Error", err)
	}
	if e.Code != code {
		t.Errorf("code %s, want %s: %v", e.Code, code, e)
	}
	for _, w := range words {
		if !strings.Contains(e.Error(), w) {
			t.Errorf("%q does not say %q", e.Error(), w)
		}
	}
	return e
}

func mkdir(t *testing.T, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func link(t *testing.T, to, at string) {
	t.Helper()
	if err := os.Symlink(to, at); err != nil {
		t.Fatal(err)
	}
}

func TestModelsAreFoundByNameAndByPath(t *testing.T) {
	top := tempDir(t)
	a, b := mkdir(t, top, "a"), mkdir(t, top, "b")
	tiny, org := mkdir(t, a, "tiny"), mkdir(t, b, "org", "model")
	link(t, tiny, filepath.Join(b, "alias"))
	roots := []string{a, b, filepath.Join(top, "gone")}
	for model, want := range map[string]string{"tiny": tiny, "org/model": org, tiny: tiny, org + "/": org, "alias": tiny, "./tiny": tiny} {
		if got, err := Resolve(roots, model); err != nil || got != want {
			t.Errorf("Resolve(%q) = %q, %v; want %q", model, got, err, want)
		}
	}
}

func TestOverlappingRootsAreNotAmbiguous(t *testing.T) {
	a := tempDir(t)
	want := mkdir(t, a, "m")
	same := filepath.Join(tempDir(t), "same")
	link(t, a, same)
	if got, err := Resolve([]string{a, same, a}, "m"); err != nil || got != want {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestWhatCannotBeResolvedSaysWhatToDo(t *testing.T) {
	top := tempDir(t)
	a, b := mkdir(t, top, "a"), mkdir(t, top, "b")
	mkdir(t, a, "twice")
	mkdir(t, b, "twice")
	out := mkdir(t, top, "outside")
	link(t, out, filepath.Join(a, "escape"))
	if err := os.WriteFile(filepath.Join(a, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	hub := mkdir(t, a, "hub")
	if err := os.WriteFile(filepath.Join(out, "secret"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	link(t, filepath.Join(out, "secret"), filepath.Join(hub, "config.json"))
	roots := []string{a, b}
	for _, c := range []struct {
		model string
		code  placement.Code
		words []string
	}{
		{"none", placement.CodeModelNotFound, []string{"none", a, b}},
		{"twice", placement.CodeModelNotFound, []string{"ambiguous", filepath.Join(a, "twice"), filepath.Join(b, "twice"), "absolute path"}},
		{"escape", placement.CodeModelNotFound, []string{"not inside a model root"}},
		{filepath.Join(a, "escape"), placement.CodeModelNotFound, []string{"not inside a model root"}},
		{out, placement.CodeModelNotFound, []string{"not inside a model root", "model_roots"}},
		{"/etc", placement.CodeModelNotFound, []string{"not inside a model root"}},
		{"/no/such/thing", placement.CodeModelNotFound, []string{"not inside a model root"}},
		{"../outside", placement.CodeModelNotFound, []string{`".."`}},
		{a + "/../outside", placement.CodeModelNotFound, []string{`".."`}},
		{filepath.Join(a, "gone"), placement.CodeModelNotFound, []string{"no such file"}},
		{filepath.Join(a, "file"), placement.CodeModelNotFound, []string{"not a folder"}},
		{"hub", placement.CodeModelInvalid, []string{"config.json", "outside the model roots"}},
		{"", placement.CodeBadRequest, []string{"empty"}},
		{"a\x00b", placement.CodeBadRequest, []string{"control"}},
	} {
		_, err := Resolve(roots, c.model)
		t.Run(strings.ReplaceAll(c.model, "/", "_"), func(t *testing.T) { refusal(t, err, c.code, c.words...) })
	}
	_, err := Resolve(nil, "tiny")
	refusal(t, err, placement.CodeModelNotFound, "no model roots")
}

func TestHubCachesOfLinksInsideTheRootsAreServed(t *testing.T) {
	root := tempDir(t)
	blobs, snap := mkdir(t, root, "blobs"), mkdir(t, root, "snap")
	if err := os.WriteFile(filepath.Join(blobs, "x"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	link(t, "../blobs/x", filepath.Join(snap, "config.json"))
	if got, err := Resolve([]string{root}, "snap"); err != nil || got != snap {
		t.Fatalf("got %q, %v", got, err)
	}
}

func FuzzResolvedModelsAreInsideTheRoots(f *testing.F) {
	for _, s := range []string{"m", "../x", "/etc/passwd", "m/../../x", "a//b", ".", "m/.", "\xff", "up/x", "up"} {
		f.Add(s)
	}
	top, err := filepath.EvalSymlinks(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	root := filepath.Join(top, "root")
	_ = os.MkdirAll(filepath.Join(root, "m", "sub"), 0o755)
	_ = os.MkdirAll(filepath.Join(top, "x"), 0o755)
	_ = os.Symlink("..", filepath.Join(root, "up"))
	f.Fuzz(func(t *testing.T, model string) {
		got, err := Resolve([]string{root}, model)
		if err != nil {
			if _, ok := errors.AsType[*placement.Error](err); !ok {
				t.Fatalf("%q: %v is no refusal", model, err)
			}
			return
		}
		if got != root && !strings.HasPrefix(got, root+"/") {
			t.Fatalf("%q left the root: %s", model, got)
		}
	})
}
