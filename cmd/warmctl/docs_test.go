package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/cmd/internal/manual"
)

const root = "../.."

// TestGeneratedFilesAreUpToDate: man pages, REFERENCE.md and completions.
func TestGeneratedFilesAreUpToDate(t *testing.T) {
	files := generated()
	if *rewrite {
		require.Equal(t, exitOK, warmctl(t, testConsole(), "docs", "--dir", root).code)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err, "go run ./cmd/warmctl docs")
		require.Equal(t, want, string(got), "%s is out of date: go run ./cmd/warmctl docs", name)
	}
	for _, dir := range []string{"packaging/man", "packaging/completions"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		require.NoError(t, err)
		for _, e := range entries {
			if strings.HasPrefix(strings.TrimPrefix(e.Name(), "_"), "warmctl") {
				require.Contains(t, files, dir+"/"+e.Name(), "a page of a command that is no more")
			}
		}
	}
}

// TestDocsWritesIntoAnEmptyTree, and only what it lists.
func TestDocsWritesIntoAnEmptyTree(t *testing.T) {
	dir := t.TempDir()
	got := warmctl(t, testConsole(), "docs", "--dir", dir)
	require.Equal(t, exitOK, got.code, got.err)
	for name := range strings.FieldsSeq(got.out) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, generated()[name], string(b))
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	golden(t, "help/warmctl.golden", helpText(nil))
	for _, c := range commands() {
		if !c.hidden {
			got := warmctl(t, testConsole(), c.name, "--help")
			require.Equal(t, exitOK, got.code)
			golden(t, "help/"+c.name+".golden", got.out)
		}
	}
}

// TestEveryCommandHasAnExampleThatParses: an example with an unknown flag or a
// missing argument would teach a mistake.
func TestEveryCommandHasAnExampleThatParses(t *testing.T) {
	lines := regexp.MustCompile(`warmctl( [^|>)]*)?`)
	for _, c := range commands() {
		if c.hidden {
			continue
		}
		require.NotEmpty(t, c.examples, c.name)
		require.NotEmpty(t, c.short, c.name)
		own := false
		for _, e := range c.examples {
			for _, found := range lines.FindAllString(e.line, -1) {
				words := strings.Fields(found)[1:]
				if strings.Contains(e.line, "xargs "+strings.TrimSpace(found)) {
					words = append(words, "p-1")
				}
				got, err := arrange(words, globalFlags(), commands())
				require.NoError(t, err, e.line)
				if got.command != nil && got.command.name == c.name {
					own = true
				}
			}
		}
		require.True(t, own, "no example of %s runs it", c.name)
	}
}

// TestHelpIsReadable: no line is wider than a terminal, but for examples.
func TestHelpIsReadable(t *testing.T) {
	for _, c := range commands() {
		for line := range strings.SplitSeq(c.long+"\n"+c.short, "\n") {
			require.LessOrEqual(t, len(line), 90, "%s: %s", c.name, line)
		}
		for _, f := range manual.Flags(c.flags) {
			require.NotEmpty(t, f.Usage, "%s %s", c.name, f.Names)
			require.NotEqual(t, "VALUE", f.Value, "%s %s: name its value in backquotes", c.name, f.Names)
		}
	}
}

// TestManPagesUseKnownRequestsOnly: roff ignores what it does not know, text and all.
func TestManPagesUseKnownRequestsOnly(t *testing.T) {
	known := []string{".TH", ".SH", ".PP", ".TP", ".RS", ".RE", ".nf", ".fi", `.\"`}
	for name, page := range generated() {
		if !strings.HasSuffix(name, ".1") {
			continue
		}
		for line := range strings.SplitSeq(page, "\n") {
			if strings.HasPrefix(line, ".") {
				require.True(t, slices.Contains(known, strings.Fields(line)[0]), "%s: %q", name, line)
			}
			require.False(t, strings.HasPrefix(line, "'"), "%s: %q", name, line)
		}
	}
}
