package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
)

func TestScriptsAreUnpackedOnceAndRepaired(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	first, err := Unpack(dir)
	if err != nil {
		t.Fatal(err)
	}
	zygote := filepath.Join(first, "zygote.py")
	before, err := os.Stat(zygote)
	if err != nil {
		t.Fatal(err)
	}
	if fi, _ := os.Stat(first); fi.Mode().Perm() != 0o755 {
		t.Errorf("mode %v: the engine's user cannot read it", fi.Mode())
	}
	if again, err := Unpack(dir); err != nil || again != first {
		t.Fatal(again, err)
	}
	if after, _ := os.Stat(zygote); !os.SameFile(before, after) {
		t.Error("unpacked a second time")
	}
	if err := os.Truncate(zygote, 3); err != nil {
		t.Fatal(err)
	}
	if again, err := Unpack(dir); err != nil || again != first {
		t.Fatal(again, err)
	}
	if after, _ := os.Stat(zygote); after.Size() != before.Size() {
		t.Error("a damaged script was kept")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".scripts-*")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

func TestManyUnpackAtOnce(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := Unpack(dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 {
		t.Errorf("%v", entries)
	}
}

func TestAnotherContentIsAnotherFolder(t *testing.T) {
	dir := t.TempDir()
	one, err := unpack(fstest.MapFS{"p/a.py": {Data: []byte("1")}}, "p", dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, src := range map[string]fstest.MapFS{
		"content": {"p/a.py": {Data: []byte("2")}}, "name": {"p/b.py": {Data: []byte("1")}}, "border": {"p/a.py": {Data: nil}, "p/b.py": {Data: []byte("1")}},
	} {
		if two, err := unpack(src, "p", dir); err != nil || two == one {
			t.Errorf("%s: %s %v", name, two, err)
		}
	}
	if _, err := unpack(fstest.MapFS{"p/a.py": {Data: []byte("1")}}, "p", "/proc/no"); err == nil || !strings.Contains(err.Error(), "unpack scripts") {
		t.Error(err)
	}
}
