package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v2"

	"warmd/agent"
	"warmd/coordinator"
)

// commandLine runs a command's own parsing and hands the context on.
func commandLine(t *testing.T, cmd *cli.Command, do func(*cli.Context), args ...string) {
	t.Helper()
	cmd.Action = func(c *cli.Context) error { do(c); return nil }
	app := &cli.App{Commands: []*cli.Command{cmd}, ExitErrHandler: func(*cli.Context, error) {}}
	require.NoError(t, app.Run(append([]string{"warmd", cmd.Name}, args...)))
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestFlagsWinOverTheFileAndTheFileOverDefaults(t *testing.T) {
	path := file(t, "coordinator.toml", `name = "c1"
etcd_endpoints = ["https://e1:2379", "https://e2:2379"]
listen = ["127.0.0.1:1"]
[gossip]
listen = "127.0.0.1:7947"
join = ["gpu1"]
`)
	commandLine(t, coordinatorCommand(), func(c *cli.Context) {
		cfg, err := coordinatorConfig(c)
		require.NoError(t, err)
		want := coordinator.DefaultConfig()
		want.Name, want.Endpoints, want.Listen = "c2", []string{"https://e1:2379", "https://e2:2379"}, []string{"127.0.0.1:2", "127.0.0.1:3"}
		want.Gossip.Listen, want.Gossip.Join, want.Gossip.Label = "127.0.0.1:7947", []string{"gpu2"}, "blue"
		require.Equal(t, want, cfg)
	}, "--config", path, "--name", "c2", "--listen", "127.0.0.1:2", "--listen", "127.0.0.1:3", "--join", "gpu2", "--fleet", "blue")

	commandLine(t, agentCommand(), func(c *cli.Context) {
		cfg, err := agentConfig(c)
		require.NoError(t, err)
		want := agent.DefaultConfig()
		want.Node, want.Version, want.LogLevel, want.DataDir, want.LogDir = "gpu1", version, "debug", "/d", "/d/log"
		want.Devices = map[string]agent.DeviceConfig{"cpu-0": {Slots: 3, Warm: map[string]int{"v": 2}}}
		require.Equal(t, want, cfg)
	}, "--config", file(t, "agent.toml", "node = \"other\"\nlog_level = \"debug\"\n[devices.cpu-0]\nslots = 1\nwarm = { v = 2 }\n"),
		"--name", "gpu1", "--data", "/d", "--slots", "3")
}

func TestAWrongValueIsFoundWhereItWasGiven(t *testing.T) {
	path := file(t, "coordinator.toml", "nammed = \"c1\"\nmax_queue = 0\nlisten = [\"here\"]\nlease_seconds = \"5\"\n[gossip]\nlisten = \"10.0.0.1:7947\"\n")
	commandLine(t, coordinatorCommand(), func(c *cli.Context) {
		_, err := coordinatorConfig(c)
		require.EqualError(t, err, path+":1: unknown key nammed\n"+
			path+":4: lease_seconds must be a whole number, not a TOML string\n"+
			"--listen[1] \"there\" must be host:port\n"+
			path+":2: max_queue 0 must be between 1 and 1048576\n"+
			path+":5: gossip.keys_file is missing: whoever reaches 10.0.0.1:7947 could join the fleet; `head -c 32 /dev/urandom | base64` makes a key")
	}, "--config", path, "--listen", "127.0.0.1:1", "--listen", "there")
	require.Equal(t, 2, run([]string{"warmd", "coordinator", "--config", path}), "the operator's fault")
	require.Equal(t, 2, run([]string{"warmd", "agent", "--config", "/nonexistent/agent.toml"}))
	require.Equal(t, 2, run([]string{"warmd", "agent", "--name", "a b", "--check-config"}))
}

func TestATCPAddressThatOthersReachTakesTLS(t *testing.T) {
	commandLine(t, agentCommand(), func(c *cli.Context) {
		_, err := agentConfig(c)
		require.EqualError(t, err, "--listen[0] \"10.0.0.1:7710\" can be reached from other hosts, which takes TLS: set tls.ca, tls.cert and tls.key (`warmctl pki --help` makes them)")
	}, "--listen", "10.0.0.1:7710")
}
