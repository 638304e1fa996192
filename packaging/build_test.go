package packaging

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// testVersion is what the tests build; the tree's own depends on whether a file is
// changed.
const testVersion = "0.4.1~test+1.gabc"

// dist has the packages, built once for all tests, by name-format: warmd-deb.
var dist = map[string]string{}

func TestMain(m *testing.M) {
	if os.Getenv("WARMD_TEST_PACKAGES") == "" {
		fmt.Println("packages are built and looked at by `make packages-check`")
		return
	}
	os.Exit(func() int {
		out, err := os.MkdirTemp("", "warmd-packages-")
		if err == nil {
			defer os.RemoveAll(out)
			err = build("..", out)
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		for _, p := range []string{"warmd", "warmctl"} {
			dist[p+"-deb"] = filepath.Join(out, p+"_"+testVersion+"_amd64.deb")
			dist[p+"-rpm"] = filepath.Join(out, p+"-"+testVersion+"-1.x86_64.rpm")
		}
		return m.Run()
	}())
}

// build builds the packages of the tree in dir.
func build(dir, out string, env ...string) error {
	cmd := exec.Command(filepath.Join(dir, "packaging/build.sh"), out)
	cmd.Env = append(os.Environ(), "VERSION="+testVersion, "NFPM="+os.Getenv("WARMD_TEST_PACKAGES"))
	cmd.Env = append(cmd.Env, env...)
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build packages in %s: %w\n%s", dir, err, b)
	}
	return nil
}

// output runs a program and fails the test when it fails.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// TestPackagesAreTheSameBytesWhereverTheyAreBuilt: from a copy of the sources without
// its history, with another umask, home, time zone and language.
func TestPackagesAreTheSameBytesWhereverTheyAreBuilt(t *testing.T) {
	tree, out := filepath.Join(t.TempDir(), "another place"), t.TempDir()
	for name := range strings.SplitSeq(output(t, "git", "-C", "..", "ls-files", "-z", "--cached", "--others", "--exclude-standard"), "\x00") {
		body, err := os.ReadFile(filepath.Join("..", name))
		if name == "" || os.IsNotExist(err) { // removed, not yet committed
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if strings.HasSuffix(name, ".sh") {
			mode = 0o700
		}
		to := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, body, mode); err != nil {
			t.Fatal(err)
		}
	}
	epoch := strings.TrimSpace(output(t, "git", "-C", "..", "log", "-1", "--format=%ct"))
	if err := build(tree, out, "SOURCE_DATE_EPOCH="+epoch, "TZ=Asia/Kathmandu", "LANG=tr_TR.UTF-8"); err != nil {
		t.Fatal(err)
	}
	sum := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", sha256.Sum256(b))
	}
	for p, path := range dist {
		if a, b := sum(path), sum(filepath.Join(out, filepath.Base(path))); a != b {
			t.Errorf("%s: sha256 %s, and %s when built elsewhere: diffoscope tells them apart", p, a, b)
		}
		if fi, err := os.Stat(path); err == nil {
			fmt.Printf("figure: size_mib_%s %.1f\n", p, float64(fi.Size())/(1<<20))
		}
	}
}

// TestVersionsAreOrdered: each as dpkg sees it is newer than the one before, and is a
// legal version of an RPM.
func TestVersionsAreOrdered(t *testing.T) {
	dir := t.TempDir()
	script, err := os.ReadFile("version.sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "packaging"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "packaging/version.sh")
	if err := os.WriteFile(path, script, 0o755); err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) {
		output(t, "git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"}, args...)...)
	}
	commit := func() { git("commit", "-q", "--allow-empty", "-m", "x") }
	last := strings.TrimSpace(output(t, path))
	if last != "0.0.0" {
		t.Fatalf("without a history: %q", last)
	}
	git("init", "-q")
	git("add", ".")
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"a commit", commit},
		{"another", commit},
		{"a candidate", func() { git("tag", "v0.4.0-rc1") }},
		{"a commit after it", commit},
		{"a release", func() { git("tag", "v0.4.0") }},
		{"a commit after it", commit},
		{"a changed file", func() { _ = os.WriteFile(path, append(script, '\n'), 0o755) }},
		{"that committed", func() { git("commit", "-q", "-a", "-m", "x") }},
		{"the next release", func() { git("tag", "v0.4.1") }},
	} {
		step.do()
		v := strings.TrimSpace(output(t, path))
		if err := exec.Command("dpkg", "--compare-versions", v, "gt", last).Run(); err != nil || strings.ContainsAny(v, "-_:v ") {
			t.Errorf("after %s: %q must be newer than %q, and legal: %v", step.what, v, last, err)
		}
		last = v
	}
	if last != "0.4.1" {
		t.Errorf("at tag v0.4.1: %q", last)
	}
}
