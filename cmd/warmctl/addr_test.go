package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v2"
)

// TestAddressIsTheFirstThatIsNamedOrThere goes through the rule of addr.go from
// its end to its beginning.
func TestAddressIsTheFirstThatIsNamedOrThere(t *testing.T) {
	dir, err := os.MkdirTemp("", "waddr")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	env := map[string]string{"HOME": filepath.Join(dir, "home"), "XDG_RUNTIME_DIR": filepath.Join(dir, "run")}
	var flag string
	ask := func() (coordinator, agent address) {
		app := &cli.App{Flags: globalFlags(), Writer: os.Stderr, Action: func(c *cli.Context) error {
			k := &call{console: console{Getenv: func(k string) string { return env[k] }}, flags: c}
			coordinator, agent = k.coordinatorAddress(), k.agentAddress()
			return nil
		}}
		args := []string{"warmctl"}
		if flag != "" {
			args = append(args, "--server", flag)
		}
		require.NoError(t, app.Run(args))
		return coordinator, agent
	}
	listen := func(path string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		ln, err := net.Listen("unix", path)
		require.NoError(t, err)
		t.Cleanup(func() { _ = ln.Close() })
	}

	c, a := ask()
	require.Equal(t, "unix:///run/warmd/coordinator.sock", c.addr)
	require.Equal(t, "unix:///run/warmd/agent.sock", a.addr)
	require.Empty(t, c.given)

	dev := filepath.Join(env["HOME"], ".local/share/warmd/dev/coordinator.sock")
	listen(dev)
	c, a = ask()
	require.Equal(t, "unix://"+dev, c.addr)
	require.Equal(t, "unix:///run/warmd/agent.sock", a.addr, "each socket is looked for by itself")

	require.NoError(t, os.MkdirAll(filepath.Join(env["XDG_RUNTIME_DIR"], "warmd"), 0o755))
	session := filepath.Join(env["XDG_RUNTIME_DIR"], "warmd/coordinator.sock")
	require.NoError(t, os.WriteFile(session, nil, 0o600))
	c, _ = ask()
	require.Equal(t, "unix://"+dev, c.addr, "a plain file is no socket")
	require.NoError(t, os.Remove(session))
	listen(session)
	c, _ = ask()
	require.Equal(t, "unix://"+session, c.addr)

	env["WARMD_SERVER"] = "gpu-host-1:7700"
	c, _ = ask()
	require.Equal(t, "gpu-host-1:7700", c.addr)
	require.Equal(t, "WARMD_SERVER", c.given)

	flag = "unix:///tmp/x.sock"
	c, _ = ask()
	require.Equal(t, "unix:///tmp/x.sock", c.addr)
	require.Equal(t, "--server", c.given)
}

// TestPermissionDeniedNamesTheGroup: the most likely cause after installing.
func TestPermissionDeniedNamesTheGroup(t *testing.T) {
	err := explainUnreached(nil, "dial unix /run/warmd/agent.sock: connect: permission denied", address{role: "agent", addr: "unix:///run/warmd/agent.sock"})
	require.ErrorContains(t, err, "reach agent at unix:///run/warmd/agent.sock: permission denied")
	require.ErrorContains(t, err, "usermod -aG warmd")
}
