package main

import (
	"context"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/urfave/cli/v2"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
)

// command is one command: what runs it, and all that help, man pages, the
// reference and completion say about it.
type command struct {
	name     string
	args     string // as shown behind the name, e.g. "ID..."
	min, max int    // how many positionals; max < 0: any number
	short    string // one line
	long     string // paragraphs; lines that start with two spaces are shown as they are
	examples []example
	flags    []cli.Flag
	// complete says what its positionals are: placements, nodes, placements+nodes,
	// dirs, or a list of words.
	complete string
	// formats are what -o takes besides table and json.
	formats []string
	hidden  bool
	// raw hands everything behind the name to the command as it stands.
	raw bool
	run func(*call) error
}

type example struct{ line, says string }

// commands lists every command in the order of the help.
func commands() []command {
	return []command{
		placeCommand(), psCommand(), releaseCommand(), sleepCommand(), wakeCommand(), describeCommand(), logsCommand(), traceCommand(), eventsCommand(),
		capacityCommand(), nodesCommand(), workersCommand(), drainCommand(), undrainCommand(),
		doctorCommand(), pkiCommand(), benchCommand(), completionCommand(), versionCommand(),
		docsCommand(), completeCommand(),
	}
}

// globalFlags work with every command, before or behind it.
func globalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "server", Usage: "`ADDR`: the coordinator, as unix:///path, host:port or https://host:port (env WARMD_SERVER)"},
		&cli.StringFlag{Name: "agent", Usage: "`ADDR`: an agent, in the same forms (env WARMD_AGENT); without --server, commands that an agent can answer ask it alone"},
		&cli.StringFlag{Name: "tls-ca", Usage: "`FILE`: CAs that servers must be signed by, for https (env WARMD_TLS_CA)"},
		&cli.StringFlag{Name: "tls-cert", Usage: "`FILE`: our certificate (env WARMD_TLS_CERT)"},
		&cli.StringFlag{Name: "tls-key", Usage: "`FILE`: its private key (env WARMD_TLS_KEY)"},
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "`FORMAT`: table or json"},
	}
}

func findCommand(cmds []command, name string) *command {
	for i := range cmds {
		if cmds[i].name == name {
			return &cmds[i]
		}
	}
	return nil
}

// checkCount refuses positionals that the command would ignore.
func (c *command) checkCount(operands []string) error {
	var e error
	switch n := len(operands); {
	case n < c.min:
		e = usagef("%s needs %s", c.name, c.args).WithHint("%s", usageHint(c))
	case c.max == 0 && n > 0:
		e = usagef("%s takes no arguments, got %q", c.name, operands[0]).WithHint("%s", usageHint(c))
	case c.max > 0 && n > c.max:
		e = usagef("%s takes %s, got also %q", c.name, c.args, strings.Join(operands[c.max:], " ")).WithHint("%s", usageHint(c))
	}
	return e
}

// forCLI makes the urfave form of a command.
func (c *command) forCLI(con console) *cli.Command {
	return &cli.Command{
		Name: c.name, Flags: c.flags, HideHelp: true, HideHelpCommand: true, OnUsageError: usageFromCLI,
		Action: func(flags *cli.Context) error {
			k := &call{console: con, flags: flags, args: flags.Args().Slice()}
			k.ctx = k.watch(flags.Context)
			defer k.close()
			known := append([]string{"table", "json"}, c.formats...)
			if k.format = flags.String("output"); !slices.Contains(known, k.format) {
				return usagef("-o %q must be %s or %s", k.format, strings.Join(known[:len(known)-1], ", "), known[len(known)-1])
			}
			k.json = k.format == "json"
			return c.run(k)
		},
	}
}

// call is one run of a command.
type call struct {
	console
	ctx   context.Context
	flags *cli.Context
	args  []string
	// format is what -o says; json that it is json.
	format string
	json   bool
	conns  []interface{ Close() }
	kept   struct { // the clients of the last addresses
		coordinator                *coordapi.Client
		agent                      *agentapi.Client
		coordinatorAddr, agentAddr address
	}
	// answered says whether the server that was asked last has answered at all.
	answered atomic.Bool
	// remarks are what a server said about its answer, see remarks.go.
	remarks []string
}

// watch notes when the first byte of an answer comes. A server that answers with
// "unavailable" (it could not reach a node, say) is not one that is unavailable.
func (c *call) watch(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:              func(string) { c.answered.Store(false) },
		GotFirstResponseByte: func() { c.answered.Store(true) },
	})
}

// close drops the connections that the command opened.
func (c *call) close() {
	for _, k := range c.conns {
		k.Close()
	}
}
