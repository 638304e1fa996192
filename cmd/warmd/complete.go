package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"warmd/agent/runtime"
	"warmd/cmd/internal/manual"
)

// completeCommand answers the shells' scripts; see [manual.Complete]. The library's
// own way evaluates the line in the shell, and might run what stands on it.
func completeCommand(app *cli.App) *cli.Command {
	return &cli.Command{
		Name: manual.Complete, Hidden: true, HideHelp: true, SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			words := c.Args().Slice()
			if len(words) == 0 {
				words = []string{""}
			}
			cur := words[len(words)-1]
			for _, k := range candidates(app.Commands, words[:len(words)-1], cur) {
				if strings.HasPrefix(k.value, cur) || strings.HasPrefix(k.value, ":") {
					fmt.Fprintln(c.App.Writer, strings.TrimSuffix(k.value+"\t"+k.says, "\t"))
				}
			}
			return nil
		},
	}
}

type candidate struct{ value, says string }

// candidates reads the line up to the cursor, and says what could stand there.
func candidates(level []*cli.Command, before []string, cur string) (out []candidate) {
	var cmd *cli.Command
	var flag cli.Flag // the one whose value is being typed
	root := runtime.DefaultRoot()
	for _, w := range before {
		switch {
		case w == "--":
			return nil // a command of the user's own
		case flag != nil:
			if flag.Names()[0] == "root" {
				root = w
			}
			flag = nil
		case strings.HasPrefix(w, "-"):
			name, _, has := strings.Cut(strings.TrimLeft(w, "-"), "=")
			if f := flagOf(cmd, name); f != nil && !has && manual.FlagOf(f).Value != "" {
				flag = f
			}
		default:
			for _, k := range level {
				if k.HasName(w) {
					cmd, level = k, k.Subcommands
					break
				}
			}
		}
	}
	name, _, has := strings.Cut(cur, "=")
	switch {
	case flag != nil:
		return valuesOf(flag, "")
	case strings.HasPrefix(cur, "-") && has:
		if f := flagOf(cmd, strings.TrimLeft(name, "-")); f != nil {
			return valuesOf(f, name+"=")
		}
	case strings.HasPrefix(cur, "-"):
		if cmd != nil {
			for _, f := range cmd.Flags {
				out = append(out, candidate{"--" + f.Names()[0], manual.FlagOf(f).Usage})
			}
		}
		return append(out, candidate{"--help", "say more"})
	case len(level) > 0:
		for _, k := range level {
			if !k.Hidden {
				out = append(out, candidate{k.Name, k.Usage})
			}
		}
	case cmd != nil && (cmd.Name == "check" || cmd.Name == "rm"):
		have, bad, _ := runtime.List(root)
		for _, m := range have {
			out = append(out, candidate{m.Name, strings.TrimSpace(m.Engine + " " + m.Version)})
		}
		for _, p := range bad {
			out = append(out, candidate{p.Name, p.Message})
		}
	case cmd != nil && cmd.ArgsUsage == "DIR":
		return []candidate{{":dirs", ""}}
	}
	return out
}

func flagOf(cmd *cli.Command, name string) cli.Flag {
	if cmd == nil {
		return nil
	}
	for _, f := range cmd.Flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

// valuesOf reads the name that a flag's help gives its value: `auto|cpu|cuda` are the
// values themselves, DIR and the like are for the shell.
func valuesOf(f cli.Flag, prefix string) (out []candidate) {
	switch value := manual.FlagOf(f).Value; {
	case value == "DIR":
		return []candidate{{":dirs", ""}}
	case value == "FILE" || value == "PATH":
		return []candidate{{":files", ""}}
	case strings.Contains(value, "|") || value == "json":
		for v := range strings.SplitSeq(value, "|") {
			out = append(out, candidate{prefix + v, ""})
		}
	}
	return out
}
