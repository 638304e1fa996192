package main

import (
	"strings"

	"github.com/urfave/cli/v2"

	"warmd/cmd/internal/manual"
)

// manFiles are what the packages put where.
var manFiles = [][2]string{
	{"/etc/warmd/agent.toml, /etc/warmd/coordinator.toml", "configuration, see warmd-agent.toml(5) and warmd-coordinator.toml(5)"},
	{"/run/warmd/agent.sock, /run/warmd/coordinator.sock", "where warmctl asks; members of group warmd may"},
	{"/run/warmd/rt", "one folder for each generation of a runtime: control sockets, what was started"},
	{"/var/lib/warmd/runtimes", "engines that `warmd runtime add` installed"},
	{"/var/lib/warmd/agent", "the agent's journal and traces"},
	{"/var/log/warmd", "what engines print, one file for each worker"},
	{"/usr/lib/warmd/python", "the Python side, run by the runtimes' own interpreters"},
}

// manSignals is what the daemons do on a signal.
const manSignals = `SIGTERM and SIGINT end it in order; no engine ends with it, and the next agent finds them all.
A second one, at least a second later, ends it at once.`

// manProgram is warmd.8.
func manProgram(app *cli.App) string {
	var m manual.Page
	m.Title(docsTool, "warmd", 8, app.Usage)
	m.Section("SYNOPSIS")
	m.Text("warmd COMMAND [flags] [arguments]")
	m.Section("DESCRIPTION")
	m.Text(`warmd keeps workers of an inference engine parked on the devices of a host: imports done, processes
forked, waiting for a model. A model that is placed on one answers its first token within seconds.

An agent runs on each host and owns its devices. One to three coordinators, over one etcd, place
models on the hosts of a fleet. warmctl(1) is how people ask both. The packages bring units:

  systemctl status warmd-agent.service
  systemctl enable --now warmd-coordinator.socket warmd-coordinator.service

Engines run in units of their own, warmd-runtime@NAME.GENERATION.service in warmd.slice. They outlive
restarts, upgrades and crashes of the agent; ` + "`systemctl stop warmd.slice`" + ` ends them.`)
	m.Section("COMMANDS")
	for _, c := range app.Commands {
		if !c.Hidden {
			m.Term("warmd-"+c.Name+"(8)", c.Usage)
		}
	}
	m.Section("FILES")
	for _, f := range manFiles {
		m.Term(f[0], f[1])
	}
	m.Section("ENVIRONMENT")
	m.Term("WARMD_RUNTIMES", "folder of runtimes, for commands that are not told one")
	m.Term("LISTEN_FDS, NOTIFY_SOCKET, WATCHDOG_USEC", "set by systemd, see sd_listen_fds(3) and sd_notify(3)")
	manExits(&m)
	m.Section("SEE ALSO")
	m.Text("warmd-agent.toml(5), warmd-coordinator.toml(5), warmctl(1), systemd(1)")
	return m.String()
}

// manCommand is the page of a command, its subcommands in sections of their own.
func manCommand(c *cli.Command) string {
	var m manual.Page
	m.Title(docsTool, "warmd-"+c.Name, 8, c.Usage)
	m.Section("SYNOPSIS")
	if len(c.Subcommands) == 0 {
		m.Text(synopsis("warmd", c))
	}
	for _, sub := range c.Subcommands {
		m.Code(synopsis("warmd "+c.Name, sub))
	}
	manBody(&m, c, true)
	for _, sub := range c.Subcommands {
		m.Section(strings.ToUpper(c.Name + " " + sub.Name))
		m.Text(sentence(sub.Usage))
		manBody(&m, sub, false)
	}
	if c.Name == "agent" || c.Name == "coordinator" {
		m.Section("SIGNALS")
		m.Text(manSignals)
	}
	manExits(&m)
	m.Section("SEE ALSO")
	if c.Name == "agent" || c.Name == "coordinator" {
		m.Text("warmd-" + c.Name + ".toml(5), warmd(8), warmctl(1)")
	} else {
		m.Text("warmd(8), warmctl(1)")
	}
	return m.String()
}

// manBody is a command's description, flags and examples. A description's lines that
// begin with the program's name are its examples. A subcommand is one section.
func manBody(m *manual.Page, c *cli.Command, sections bool) {
	var examples, says []string
	for line := range strings.SplitSeq(c.Description, "\n") {
		if strings.HasPrefix(line, "warmd ") {
			examples = append(examples, line)
		} else {
			says = append(says, line)
		}
	}
	part := func(title string) {
		if sections {
			m.Section(title)
		} else if title == "EXAMPLES" {
			m.Text("Examples:")
		}
	}
	if text := strings.TrimSpace(strings.Join(says, "\n")); text != "" {
		part("DESCRIPTION")
		m.Text(text)
	}
	if flags := manual.Flags(c.Flags); len(flags) > 0 {
		part("FLAGS")
		m.Flags(flags)
	}
	if len(examples) > 0 {
		part("EXAMPLES")
		for _, e := range examples {
			m.Code(e)
		}
	}
}

func synopsis(parent string, c *cli.Command) string {
	line := parent + " " + c.Name
	if len(c.Flags) > 0 {
		line += " [flags]"
	}
	return strings.TrimSpace(line + " " + c.ArgsUsage)
}

// sentence begins with a capital and ends with a full stop.
func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] + "." }

func manExits(m *manual.Page) {
	m.Section("EXIT STATUS")
	for _, e := range [][2]string{
		{"0", "done; a daemon that a signal ended in order"}, {"1", "it failed"},
		{"2", "usage: an unknown flag, a bad value, a configuration that is refused"}, {"130", "interrupted before it was done"},
	} {
		m.Term(e[0], e[1])
	}
}
