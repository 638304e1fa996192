package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/agent"
	"warmd/coordinator"
)

// A block of the README's page about a fleet names its hosts in its first line.
var fleetBlock = regexp.MustCompile("(?ms)^```sh\n# on ([a-z0-9 ]+)\n(.*?)^```$")

type block struct{ hosts, script string }

func readmeBlocks(t *testing.T) (all []block) {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	for _, m := range fleetBlock.FindAllStringSubmatch(string(text), -1) {
		all = append(all, block{m[1], m[2]})
	}
	require.NotEmpty(t, all)
	return all
}

func TestTheCommandsOfTheReadmeAreShell(t *testing.T) {
	for _, b := range readmeBlocks(t) {
		cmd := exec.Command("bash", "-n")
		cmd.Stdin = strings.NewReader(b.script)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s\n%s", out, b.script)
	}
}

// The block that writes the configuration is run as printed, below another root and
// with the host's own programs replaced: what it writes has to be valid.
func TestTheReadmeWritesValidConfigurations(t *testing.T) {
	root := t.TempDir()
	bin := filepath.Join(root, "bin")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "etc/warmd"), 0o755))
	require.NoError(t, os.MkdirAll(bin, 0o755))
	for name, says := range map[string]string{"hostname": "echo gpu1", "getent": `echo "10.0.0.1 STREAM gpu1"`, "warmd": "", "warmctl": "", "systemctl": ""} {
		require.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+says+"\n"), 0o755))
	}
	found := false
	for _, b := range readmeBlocks(t) {
		if !strings.Contains(b.script, "> /etc/warmd/agent.toml") {
			continue
		}
		found = true
		script := strings.NewReplacer("> /etc/", "> "+root+"/etc/", " /etc/systemd/", " "+root+"/etc/systemd/", " /srv/", " "+root+"/srv/").Replace(b.script)
		cmd := exec.Command("bash", "-eu", "-c", script)
		cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin"}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	require.True(t, found)
	a, file, err := agent.ReadConfig(filepath.Join(root, "etc/warmd/agent.toml"))
	require.NoError(t, err)
	require.NoError(t, file.Locate(a.Validate()))
	require.Equal(t, "10.0.0.1:7946", a.Gossip.Listen)
	c, file, err := coordinator.ReadConfig(filepath.Join(root, "etc/warmd/coordinator.toml"))
	require.NoError(t, err)
	require.NoError(t, file.Locate(c.Validate()))
	require.Equal(t, "etcd_ca", c.EtcdTLS().Under+"ca")
	drop, err := os.ReadFile(filepath.Join(root, "etc/systemd/system/warmd-agent.socket.d/fleet.conf"))
	require.NoError(t, err)
	require.Equal(t, "[Socket]\nListenStream=10.0.0.1:7710\n", string(drop))
}
