package main

import (
	"os"
	"path/filepath"
)

// Which server is asked. For the coordinator, the first that is there:
//
//  1. --server
//  2. $WARMD_SERVER
//  3. $XDG_RUNTIME_DIR/warmd/coordinator.sock   if that socket exists
//  4. ~/.local/share/warmd/dev/coordinator.sock if that socket exists (warmd dev)
//  5. /run/warmd/coordinator.sock               (the systemd service)
//
// and for the agent the same with --agent, $WARMD_AGENT and agent.sock.
//
// Commands that an agent can answer too (ps, describe, logs, trace, events,
// capacity, nodes, workers, drain) ask the coordinator, then, when it cannot be
// reached, the agent. With --agent and no --server they ask that agent alone.
type address struct {
	role  string // coordinator, agent
	flag  string // --server, --agent
	env   string
	addr  string
	given string // what named it: --server, WARMD_SERVER, or nothing
}

// addressHelp is that rule for help and man pages.
const addressHelp = `The coordinator is the first of --server, $WARMD_SERVER, and the sockets
  $XDG_RUNTIME_DIR/warmd/coordinator.sock
  ~/.local/share/warmd/dev/coordinator.sock (warmd dev)
  /run/warmd/coordinator.sock (the service)
The agent is found the same way: --agent, $WARMD_AGENT, agent.sock in those folders.

` + tlsHelp

// coordinatorAddress and agentAddress apply the rule.
func (c *call) coordinatorAddress() address {
	return c.resolve(address{role: "coordinator", flag: "--server", env: "WARMD_SERVER"}, c.flags.String("server"))
}

func (c *call) agentAddress() address {
	return c.resolve(address{role: "agent", flag: "--agent", env: "WARMD_AGENT"}, c.flags.String("agent"))
}

func (c *call) resolve(a address, fromFlag string) address {
	if fromFlag != "" {
		a.addr, a.given = fromFlag, a.flag
		return a
	}
	if v := c.Getenv(a.env); v != "" {
		a.addr, a.given = v, a.env
		return a
	}
	var candidates []string
	if dir := c.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		candidates = append(candidates, filepath.Join(dir, "warmd", a.role+".sock"))
	}
	if home := c.Getenv("HOME"); home != "" {
		candidates = append(candidates, filepath.Join(home, ".local/share/warmd/dev", a.role+".sock"))
	}
	for _, path := range candidates {
		if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
			a.addr = "unix://" + path
			return a
		}
	}
	a.addr = "unix:///run/warmd/" + a.role + ".sock"
	return a
}
