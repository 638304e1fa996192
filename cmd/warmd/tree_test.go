package main

import (
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// allowed is the drawing of the tree: which packages of this module each package
// may import. Everything that is not here is forbidden, so a new arrow is a
// decision somebody makes in this file.
var allowed = map[string][]string{
	"warmd/cmd/warmd":               {"agent", "agent/api", "agent/api/access", "agent/conf", "agent/gossip", "agent/runtime", "cmd/internal/*", "coordinator", "coordinator/api", "placement", "systemd"},
	"warmd/cmd/warmctl":             {"agent/api", "agent/api/access", "agent/api/access/pki", "cmd/internal/*", "coordinator/api", "placement"},
	"warmd/cmd/internal/*":          {},
	"warmd/cmd/internal/bench":      {"agent/api", "agent/api/otlp", "coordinator/api", "placement"},
	"warmd/packaging":               {},
	"warmd/placement":               {},
	"warmd/systemd":                 {},
	"warmd/agent":                   {"agent/api", "agent/api/access", "agent/conf", "agent/gossip", "agent/internal/*", "agent/runtime", "placement", "systemd"},
	"warmd/agent/api":               {"agent/api/access", "placement"},
	"warmd/agent/api/access":        {"agent/api/access/pki", "placement"},
	"warmd/agent/api/access/*":      {"agent/api/access", "agent/api/access/pki", "placement"},
	"warmd/agent/api/otlp":          {},
	"warmd/agent/conf":              {"placement"},
	"warmd/agent/gossip":            {"placement"},
	"warmd/agent/gossip/gossiptest": {},
	"warmd/agent/runtime":           {},
	"warmd/agent/internal/*":        {"agent/api", "agent/api/otlp", "agent/internal/*", "agent/runtime", "placement", "systemd"},
	"warmd/coordinator":             {"agent/api", "agent/api/access", "agent/conf", "agent/gossip", "coordinator/api", "coordinator/internal/*", "placement"},
	"warmd/coordinator/api":         {"agent/api", "placement"},
	"warmd/coordinator/internal/*":  {"agent/api", "coordinator/internal/*", "placement"},
	"warmd/packaging/nspawn":        {},
	"warmd/packaging/nspawn/host":   {},
	"warmd/packaging/nspawn/load":   {"placement"},
}

// only names who alone may import a library, and why.
var only = map[string]struct {
	who []string
	why string
}{
	"github.com/NVIDIA/go-nvml":             {[]string{"warmd/agent/internal/gpu"}, "it needs cgo"},
	"github.com/hashicorp/memberlist":       {[]string{"warmd/agent/gossip", "warmd/agent/gossip/gossiptest"}, "nobody else knows how the fleet talks"},
	"github.com/coreos/go-systemd/v22/dbus": {[]string{"warmd/agent/internal/worker"}, "only engines are units of ours"},
	"github.com/godbus/dbus":                {[]string{"warmd/agent/internal/worker"}, "only engines are units of ours"},
	"github.com/urfave/cli":                 {[]string{"warmd/cmd/warmd", "warmd/cmd/warmctl", "warmd/cmd/internal/manual"}, "flags belong to cmd"},
	"go.etcd.io/etcd": {[]string{"warmd/coordinator/internal/store", "warmd/coordinator/internal/store/storetest", "warmd/coordinator/internal/sweep", "warmd/cmd/warmd", "warmd/coordinator"},
		"records go through the store"},
}

func matches(pattern, pkg string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "/*"); ok {
		return strings.HasPrefix(pkg, prefix+"/")
	}
	return pattern == pkg
}

func goList(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	imports := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		imports[f[0]] = f[1:]
	}
	return imports
}

func TestImportsFollowTheDrawing(t *testing.T) {
	for pkg, imports := range goList(t) {
		var rule []string
		found := false
		for p, r := range allowed {
			if matches(p, pkg) && (!found || p == pkg) {
				rule, found = r, true
			}
		}
		if !found {
			t.Errorf("%s is not in the drawing: add it to allowed, or put the code where it belongs", pkg)
		}
		for _, i := range imports {
			if rel, ours := strings.CutPrefix(i, "warmd/"); ours {
				if !slices.ContainsFunc(rule, func(p string) bool { return matches(p, rel) }) {
					t.Errorf("%s imports %s, which the drawing forbids", pkg, i)
				}
				continue
			}
			for lib, o := range only {
				if strings.HasPrefix(i, lib) && !slices.Contains(o.who, pkg) {
					t.Errorf("%s imports %s: only %v may, because %s", pkg, i, o.who, o.why)
				}
			}
			if pkg == "warmd/placement" && strings.Contains(strings.Split(i, "/")[0], ".") {
				t.Errorf("placement imports %s: it is standard library only", i)
			}
		}
	}
}

func TestEveryPackageHasOneDocCommentWorthReading(t *testing.T) {
	root, _ := filepath.Abs("../..")
	for pkg := range goList(t) {
		dir := filepath.Join(root, strings.TrimPrefix(pkg, "warmd"))
		files, _ := filepath.Glob(filepath.Join(dir, "*.go"))
		var docs []string
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			ast, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if ast.Doc != nil && len(ast.Doc.Text()) > 0 && !strings.HasPrefix(ast.Doc.Text(), "//go:build") {
				docs = append(docs, filepath.Base(f))
				if n := len(ast.Doc.Text()); n < 120 {
					t.Errorf("%s: the package comment in %s has %d characters: say what the package is for", pkg, filepath.Base(f), n)
				}
			}
		}
		if len(docs) != 1 {
			t.Errorf("%s has %d package comments %v, want exactly one", pkg, len(docs), docs)
		}
	}
}

func TestTopLevelIsExactlyTheDrawing(t *testing.T) {
	want := []string{"Makefile", "README.md", "agent", "cmd", "coordinator", "go.mod", "go.sum", "packaging", "placement", "systemd"}
	out, err := exec.Command("git", "-C", "../..", "ls-files").Output()
	if err != nil {
		entries, _ := os.ReadDir("../..")
		t.Logf("no git (%v): %d entries", err, len(entries))
		t.FailNow()
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		top, _, _ := strings.Cut(strings.TrimSpace(line), "/")
		if !strings.HasPrefix(top, ".") {
			seen[top] = true
		}
	}
	for top := range seen {
		if !slices.Contains(want, top) {
			t.Errorf("%s does not belong at the top level", top)
		}
	}
}
