package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/agent/runtime"
)

// completions are the values offered for a line; the last word is being typed.
func completions(t *testing.T, words ...string) []string {
	t.Helper()
	var out bytes.Buffer
	app := newApp()
	app.Writer = &out
	require.NoError(t, app.Run(append([]string{"warmd", "__complete"}, words...)))
	var values []string
	for line := range strings.Lines(out.String()) {
		value, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		values = append(values, value)
	}
	return values
}

func TestCompletionKnowsWhatCouldStandThere(t *testing.T) {
	root := t.TempDir()
	_, err := runtime.Add(t.Context(), runtime.AddOptions{Root: root, Name: "llama", Device: "cpu", ExecCommand: []string{"/bin/sleep", "{port}"}})
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		words []string
		want  []string
	}{
		"commands":                  {[]string{"d"}, []string{"dev", "demo"}},
		"no word at all":            {nil, []string{"agent", "coordinator", "dev", "demo", "runtime", "model"}},
		"subcommands":               {[]string{"runtime", ""}, []string{"add", "ls", "check", "rm"}},
		"flags":                     {[]string{"agent", "--gossip"}, []string{"--gossip", "--gossip-keys"}},
		"flags of a subcommand":     {[]string{"runtime", "add", "--v"}, []string{"--vllm"}},
		"values of a flag":          {[]string{"agent", "--device", ""}, []string{"auto", "cpu", "cuda"}},
		"values behind equals":      {[]string{"agent", "--log-level=w"}, []string{"--log-level=warn"}},
		"formats":                   {[]string{"runtime", "ls", "-o", ""}, []string{"json"}},
		"files":                     {[]string{"agent", "--config", "/etc"}, []string{":files"}},
		"folders":                   {[]string{"agent", "--models", "/"}, []string{":dirs"}},
		"folders behind equals":     {[]string{"agent", "--data=/"}, []string{":dirs"}},
		"an argument that is one":   {[]string{"model", "make", ""}, []string{":dirs"}},
		"runtimes":                  {[]string{"runtime", "rm", "--root", root, ""}, []string{"llama"}},
		"free text":                 {[]string{"agent", "--name", ""}, nil},
		"a command of the user":     {[]string{"runtime", "add", "x", "--exec", "--", "--v"}, nil},
		"unknown flag on the line":  {[]string{"agent", "--bogus", "--check"}, []string{"--check-config"}},
		"help":                      {[]string{"agent", "--he"}, []string{"--help"}},
		"nothing fits":              {[]string{"x", ""}, []string{"agent", "coordinator", "dev", "demo", "runtime", "model"}},
		"hidden commands stay away": {[]string{"do"}, nil},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, completions(t, tc.words...)) })
	}
}

// TestBashCompletes runs the script in a real bash. `warmd` in PATH is this test binary.
func TestBashCompletes(t *testing.T) {
	script, err := filepath.Abs("../../packaging/completions/warmd.bash")
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	bin, dir := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "warmd"), fmt.Appendf(nil, "#!/bin/sh\nexec %q play-warmd \"$@\"\n", self), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a file"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "a folder"), 0o755))
	for line, want := range map[string]string{
		"warmd co":                 "coordinator",
		"warmd agent --device=c":   "cpu cuda",
		"warmd agent --config a":   "a file a folder",
		"warmd agent --data a":     "a folder",
		"warmd agent --data=a":     "a folder",
		"warmd agent --listen $(:": "",
	} {
		cmd := exec.Command("bash", "-c", fmt.Sprintf(`source %q; COMP_LINE=%s; COMP_POINT=${#COMP_LINE}; compopt() { :; }; _warmd; printf '%%s\n' "${COMPREPLY[@]}" | sort`, script, "'"+line+"'"))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Equal(t, want, strings.Join(strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' }), " "), line)
	}
}
