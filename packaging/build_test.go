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

// dist has the packages that `make packages` built, by name-format: warmd-deb.
var dist = map[string]string{}

// version is theirs.
var version = os.Getenv("VERSION")

func TestMain(m *testing.M) {
	dir := os.Getenv("WARMD_TEST_PACKAGES")
	if dir == "" {
		fmt.Println("packages are built and looked at by `make packages-check`")
		return
	}
	for _, p := range []string{"warmd", "warmctl"} {
		dist[p+"-deb"] = filepath.Join(dir, p+"_"+version+"_amd64.deb")
		dist[p+"-rpm"] = filepath.Join(dir, p+"-"+version+"-1.x86_64.rpm")
	}
	os.Exit(m.Run())
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
// its history, with other modes, another time zone and language.
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
	cmd := exec.Command(filepath.Join(tree, "packaging/build.sh"), out)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+epoch, "TZ=Asia/Kathmandu", "LANG=tr_TR.UTF-8")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
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
