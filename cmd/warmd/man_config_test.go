package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/agent"
	"warmd/agent/conf"
	"warmd/coordinator"
)

// packaged are the configuration files that the packages install.
func packaged(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../packaging/config", name+".toml"))
	require.NoError(t, err)
	return string(text)
}

var commentedOut = regexp.MustCompile(`(?m)^#([^\s#])`)

// keysOf lists the keys of a configuration's struct as table.key; of a table whose
// names are free, like devices, the keys below any name.
func keysOf(of reflect.Type, under string) (keys []string) {
	for f := range of.Fields() {
		key, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		switch {
		case key == "" || key == "-":
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, keysOf(f.Type, under+key+".")...)
		case f.Type.Kind() == reflect.Map && f.Type.Elem().Kind() == reflect.Struct:
			keys = append(keys, keysOf(f.Type.Elem(), under+key+".*.")...)
		case f.Type.Kind() == reflect.Map && under == "":
			keys = append(keys, key+".*")
		default:
			keys = append(keys, under+key)
		}
	}
	return keys
}

func TestPackagedFilesExplainEveryKey(t *testing.T) {
	for name, of := range map[string]reflect.Type{"agent": reflect.TypeFor[agent.Config](), "coordinator": reflect.TypeFor[coordinator.Config]()} {
		about, all := settings(packaged(t, name))
		require.NotEmpty(t, about)
		var have []string
		for _, s := range all {
			require.NotEmpty(t, s.says, "%s.toml: %s %s has no comment", name, s.table, s.key)
			if s.key == "" {
				continue
			}
			key := strings.TrimPrefix(s.table+"."+s.key, ".")
			key = regexp.MustCompile(`^devices\.[^.]+\.`).ReplaceAllString(key, "devices.*.")
			key = regexp.MustCompile(`^warm\..*`).ReplaceAllString(key, "warm.*")
			have = append(have, key)
		}
		require.ElementsMatch(t, keysOf(of, ""), have, "packaging/config/%s.toml explains the keys of the program, each once; then run `%s`", name, docsTool)
	}
}

// TestPackagedFilesAreValidAsTheyAreAndUncommented, and their values are the defaults.
func TestPackagedFilesAreValidAsTheyAreAndUncommented(t *testing.T) {
	dir := t.TempDir()
	for how, edit := range map[string]func(string) string{
		"as it is":    func(s string) string { return s },
		"uncommented": func(s string) string { return commentedOut.ReplaceAllString(s, "$1") },
	} {
		path := filepath.Join(dir, "agent.toml")
		require.NoError(t, os.WriteFile(path, []byte(edit(packaged(t, "agent"))), 0o600))
		a, file, err := agent.ReadConfig(path)
		require.NoError(t, err, how)
		require.NoError(t, file.Locate(a.Validate()), how)
		want := agent.DefaultConfig()
		// Where the packages put things; for root, /var/lib/warmd/runtimes is the default as well.
		want.RuntimesDir, want.ScriptDir = "/var/lib/warmd/runtimes", "/usr/lib/warmd/python"
		if how != "as it is" { // these are examples
			want.Node, want.Warm, want.Devices = a.Node, a.Warm, a.Devices
			want.Gossip.Label = "warmd"
		}
		require.Empty(t, conf.Changed(want, a), how)

		path = filepath.Join(dir, "coordinator.toml")
		require.NoError(t, os.WriteFile(path, []byte(edit(packaged(t, "coordinator"))), 0o600))
		c, file, err := coordinator.ReadConfig(path)
		require.NoError(t, err, how)
		require.NoError(t, file.Locate(c.Validate()), how)
		defaults := coordinator.DefaultConfig()
		if how != "as it is" {
			defaults.Name, defaults.Gossip.Label = c.Name, "warmd"
		}
		require.Empty(t, conf.Changed(defaults, c), how)
	}
}
