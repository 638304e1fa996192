package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

func reachError(cause string) error {
	return placement.Errorf(placement.CodeUnavailable, "reach server: %s", cause)
}

// completions are the values offered for a line; the last word is being typed.
func completions(t *testing.T, con console, words ...string) []string {
	t.Helper()
	got := warmctl(t, con, append([]string{"__complete"}, words...)...)
	require.Equal(t, exitOK, got.code, got.err)
	require.Empty(t, got.err)
	var out []string
	for line := range strings.Lines(got.out) {
		value, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		out = append(out, value)
	}
	return out
}

func TestCompletionKnowsWhatCouldStandThere(t *testing.T) {
	f := newFake(t)
	for name, tc := range map[string]struct {
		words []string
		want  []string
	}{
		"commands":                  {[]string{"re"}, []string{"release"}},
		"command after a global":    {[]string{"-o", "json", "p"}, []string{"place", "ps", "pki"}},
		"flags of the command":      {[]string{"place", "--wa"}, []string{"--wait", "--wait-capacity"}},
		"global flags behind it":    {[]string{"ps", "--ser"}, []string{"--server"}},
		"values of a flag":          {[]string{"place", "--start", ""}, []string{"auto", "warm", "cold"}},
		"values behind equals":      {[]string{"place", "--start=c"}, []string{"--start=cold"}},
		"formats":                   {[]string{"ps", "-o", ""}, []string{"table", "json"}},
		"nodes of a flag":           {[]string{"place", "--node", ""}, []string{"n1", "n2", "n3"}},
		"runtimes":                  {[]string{"place", "--runtime", "vl"}, []string{"vllm", "vllm-next"}},
		"placements":                {[]string{"release", ""}, []string{"p-aaa1", "p-aab2"}},
		"placements again":          {[]string{"release", "p-aaa1", "p-aab"}, []string{"p-aab2"}},
		"nodes":                     {[]string{"drain", "n"}, []string{"n1", "n2", "n3"}},
		"both":                      {[]string{"describe", ""}, []string{"p-aaa1", "p-aab2", "n1", "n2", "n3"}},
		"folders":                   {[]string{"place", "/mo"}, []string{":dirs"}},
		"shells":                    {[]string{"completion", ""}, []string{"bash", "zsh", "fish"}},
		"nothing fits":              {[]string{"ps", "x"}, nil},
		"free text":                 {[]string{"place", "--name", ""}, nil},
		"engine argument":           {[]string{"place", "--arg", "--ma"}, nil},
		"behind the double dash":    {[]string{"release", "--", "p-aab"}, []string{"p-aab2"}},
		"unknown flag on the line":  {[]string{"place", "--bogus", "--st"}, []string{"--start"}},
		"no word at all":            {nil, []string{"place", "ps", "release", "sleep", "wake", "describe", "logs", "trace", "events", "capacity", "nodes", "workers", "drain", "undrain", "doctor", "pki", "bench", "completion", "version"}},
		"hidden commands stay away": {[]string{"do"}, []string{"doctor"}},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, completions(t, f.console(), tc.words...))
		})
	}
}

// TestCompletionAsksTheServerOfTheLine, and is silent when none answers.
func TestCompletionAsksTheServerOfTheLine(t *testing.T) {
	f := newFake(t)
	nowhere := testConsole("WARMD_SERVER", "unix:///nowhere/c.sock", "WARMD_AGENT", "unix:///nowhere/a.sock")
	require.Equal(t, []string{"n1", "n2", "n3"}, completions(t, nowhere, "drain", "--server", f.coordinator.URL, ""))
	require.Equal(t, []string{"n1", "n2", "n3"}, completions(t, nowhere, "drain", "--agent=unix://"+f.agentSocket, ""))
	require.Empty(t, completions(t, nowhere, "drain", ""))
}

// TestBashCompletes runs the script in a real bash, with the cursor at the end of
// the line. `warmctl` in PATH is this test binary.
func TestBashCompletes(t *testing.T) {
	f := newFake(t)
	script, err := filepath.Abs(root + "/packaging/completions/warmctl.bash")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "opt model"), 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "other"), 0o755))
	for line, want := range map[string]string{
		"warmctl rel":                "release",
		"warmctl place --start ":     "auto cold warm",
		"warmctl place --start=c":    "cold",
		"warmctl release p-a":        "p-aaa1 p-aab2",
		"warmctl drain --server=":    "",
		"warmctl place o":            "opt model other",
		"warmctl -o json describe n": "n1 n2 n3",
	} {
		cmd := exec.Command("bash", "-c", fmt.Sprintf(`source %q; COMP_LINE=%q; COMP_POINT=${#COMP_LINE}; compopt() { :; }; _warmctl; printf '%%s\n' "${COMPREPLY[@]}" | sort`, script, line))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "WARMD_SERVER="+f.coordinator.URL)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Equal(t, want, strings.Join(strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' }), " "), line)
	}
}
