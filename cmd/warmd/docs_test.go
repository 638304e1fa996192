package main

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v2"

	"warmd/cmd/internal/manual"
)

func TestGeneratedFilesAreUpToDate(t *testing.T) {
	files, err := generated(newApp(), "../..")
	require.NoError(t, err)
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("../..", name))
		require.NoError(t, err, docsTool)
		require.Equal(t, want, string(got), "%s is out of date: %s", name, docsTool)
	}
	for _, dir := range []string{"packaging/man", "packaging/completions"} {
		entries, err := os.ReadDir(filepath.Join("../..", dir))
		require.NoError(t, err)
		for _, e := range entries {
			if strings.HasPrefix(strings.TrimPrefix(e.Name(), "_"), "warmd") {
				require.Contains(t, files, dir+"/"+e.Name(), "a page of a command that is no more")
			}
		}
	}
}

// TestEveryCommandAndFlagSaysWhatItDoes: what help, man pages and completion show.
func TestEveryCommandAndFlagSaysWhatItDoes(t *testing.T) {
	var look func(parent string, all []*cli.Command)
	look = func(parent string, all []*cli.Command) {
		for _, c := range all {
			if c.Hidden {
				continue
			}
			name := parent + " " + c.Name
			require.NotEmpty(t, c.Usage, name)
			for _, f := range manual.Flags(c.Flags) {
				require.NotEmpty(t, f.Usage, "%s %s", name, f.Names)
				require.NotEqual(t, "VALUE", f.Value, "%s %s: name its value in backquotes", name, f.Names)
			}
			for line := range strings.SplitSeq(c.Description, "\n") {
				require.LessOrEqual(t, len(line), 130, name)
			}
			look(name, c.Subcommands)
		}
	}
	look("warmd", newApp().Commands)
}

// TestManPagesUseKnownRequestsOnly: roff ignores what it does not know, text and all.
func TestManPagesUseKnownRequestsOnly(t *testing.T) {
	files, err := generated(newApp(), "../..")
	require.NoError(t, err)
	known := []string{".TH", ".SH", ".PP", ".TP", ".RS", ".RE", ".nf", ".fi", `.\"`}
	for name, page := range files {
		if !strings.HasPrefix(name, "packaging/man/") {
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

func TestDocsWritesWhatItLists(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(dir, "packaging/config"), os.DirFS("../../packaging/config")))
	var out bytes.Buffer
	app := newApp()
	app.Writer = &out
	require.NoError(t, app.Run([]string{"warmd", "docs", "--dir", dir}))
	files, err := generated(newApp(), dir)
	require.NoError(t, err)
	require.Equal(t, slices.Sorted(maps.Keys(files)), strings.Fields(out.String()))
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
}
