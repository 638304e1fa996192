package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	agentapi "warmd/agent/api"
	"warmd/cmd/internal/manual"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// completeTime bounds what a press of the tab key may wait for a server.
const completeTime = time.Second

// completeCommand answers the shells' scripts; see [manual.Complete].
func completeCommand() command {
	return command{
		name: manual.Complete, short: "candidates for the shell", hidden: true, raw: true, max: -1,
		run: func(c *call) error {
			words := c.args
			if len(words) == 0 {
				words = []string{""}
			}
			ctx, cancel := context.WithTimeout(c.ctx, completeTime)
			defer cancel()
			c.ctx = ctx
			cur := words[len(words)-1]
			for _, k := range candidates(c, words[:len(words)-1], cur) {
				if strings.HasPrefix(k.value, cur) || k.value == ":dirs" {
					fmt.Fprintln(c.Out, strings.TrimSuffix(k.value+"\t"+printable(k.says), "\t"))
				}
			}
			return nil
		},
	}
}

type candidate struct{ value, says string }

// candidates reads the line up to the cursor the way arrange does, and says what
// could stand there.
func candidates(c *call, before []string, cur string) []candidate {
	cmds, globals := commands(), globalFlags()
	var cmd *command
	var flag cli.Flag // the one whose value is being typed
	over := false     // behind "--"
	for _, w := range before {
		switch {
		case flag != nil:
			c.remember(flag, w)
			flag = nil
		case over:
		case w == "--":
			over = true
		case len(w) > 1 && w[0] == '-':
			name, value, has := strings.Cut(strings.TrimLeft(w, "-"), "=")
			f, _ := findFlag(cmd, globals, name)
			switch {
			case f == nil || !takesValue(f):
			case has:
				c.remember(f, value)
			default:
				flag = f
			}
		case cmd == nil:
			cmd = findCommand(cmds, w)
		}
	}
	switch name, _, hasValue := strings.Cut(cur, "="); {
	case flag != nil:
		return flagValues(c, flag, "")
	case !over && strings.HasPrefix(cur, "-") && hasValue:
		if f, _ := findFlag(cmd, globals, strings.TrimLeft(name, "-")); f != nil && takesValue(f) {
			return flagValues(c, f, name+"=")
		}
		return nil
	case !over && strings.HasPrefix(cur, "-"):
		return flagNames(cmd, globals)
	case cmd == nil:
		var out []candidate
		for _, k := range cmds {
			if !k.hidden {
				out = append(out, candidate{k.name, k.short})
			}
		}
		return out
	}
	return positionals(c, cmd.complete)
}

// remember keeps a server address from the line, so that it is the one asked, and how.
func (c *call) remember(f cli.Flag, value string) {
	if name := f.Names()[0]; name == "server" || name == "agent" || strings.HasPrefix(name, "tls-") {
		_ = c.flags.Set(name, value)
	}
}

func flagNames(cmd *command, globals []cli.Flag) []candidate {
	flags := globals
	if cmd != nil {
		flags = append(append([]cli.Flag(nil), cmd.flags...), globals...)
	}
	var out []candidate
	for _, f := range flags {
		for _, n := range f.Names() {
			out = append(out, candidate{dashed(n), manual.FlagOf(f).Usage})
		}
	}
	return append(out, candidate{"--help", "say more"})
}

func flagValues(c *call, f cli.Flag, prefix string) []candidate {
	var out []candidate
	switch f.Names()[0] {
	case "output":
		out = []candidate{{"table", "for people"}, {"json", "for programs"}}
	case "start":
		out = []candidate{{"auto", "the warmest there is"}, {"warm", "or refuse"}, {"cold", "the engine's stock start"}}
	case "node":
		out = nodeCandidates(c)
	case "runtime":
		out = runtimeCandidates(c)
	}
	for i := range out {
		out[i].value = prefix + out[i].value
	}
	return out
}

func positionals(c *call, kind string) []candidate {
	switch kind {
	case "":
		return nil
	case "dirs":
		return []candidate{{":dirs", ""}}
	case "placements":
		return placementCandidates(c)
	case "nodes":
		return nodeCandidates(c)
	case "placements+nodes":
		return append(placementCandidates(c), nodeCandidates(c)...)
	}
	var out []candidate
	for w := range strings.FieldsSeq(kind) {
		out = append(out, candidate{w, ""})
	}
	return out
}

func placementCandidates(c *call) []candidate {
	ps, _, _ := ask(c,
		func(k *coordapi.Client) ([]placement.Placement, error) { return k.Placements(c.ctx, false) },
		func(k *agentapi.Client) ([]placement.Placement, error) { return k.Placements(c.ctx) })
	var out []candidate
	for _, p := range ps {
		out = append(out, candidate{p.ID, fmt.Sprintf("%s, %s on %s", p.Request.ServedName(), p.State, p.Node)})
	}
	return out
}

func nodeCandidates(c *call) []candidate {
	fleet, _, _ := c.fleet()
	var out []candidate
	for _, n := range fleet.Nodes {
		_, free, _, _, _ := n.Totals()
		out = append(out, candidate{n.Node, fmt.Sprintf("%s, %s free", nodeStatus(n), plural(free, "slot"))})
	}
	return out
}

func runtimeCandidates(c *call) []candidate {
	fleet, _, _ := c.fleet()
	seen := map[string]bool{}
	var out []candidate
	for _, n := range fleet.Nodes {
		for _, r := range n.Runtimes {
			if !seen[r.Name] {
				seen[r.Name] = true
				out = append(out, candidate{r.Name, strings.TrimSpace(r.Engine + " " + r.Version)})
			}
		}
	}
	return out
}
