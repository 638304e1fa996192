package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// arranged is a command line in the one order that urfave/cli parses fully:
// global flags, command, its flags as --name=value, "--", positionals.
type arranged struct {
	args    []string
	command *command // nil before a command was named
	help    bool
}

// arrange puts a command line into that order. Flags may stand anywhere; "--"
// ends them; global flags work behind the command too. What it does not know it
// refuses: a flag that is silently ignored places a model other than asked for.
func arrange(args []string, globals []cli.Flag, cmds []command) (arranged, error) {
	var (
		a                     arranged
		before, own, operands []string
	)
	for i := 0; i < len(args); i++ {
		tok := args[i]
		if tok == "--" {
			operands = append(operands, args[i+1:]...)
			break
		}
		if len(tok) < 2 || tok[0] != '-' {
			if a.command != nil {
				operands = append(operands, tok)
				continue
			}
			if tok == "help" {
				a.help = true
				continue
			}
			if a.command = findCommand(cmds, tok); a.command == nil {
				return a, unknownCommand(tok, cmds)
			}
			if a.command.raw {
				operands = append(operands, args[i+1:]...)
				break
			}
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimLeft(tok, "-"), "=")
		if name == "help" || name == "h" {
			a.help = true
			continue
		}
		if name == "version" && a.command == nil {
			a.command = findCommand(cmds, "version")
			continue
		}
		flag, global := findFlag(a.command, globals, name)
		if flag == nil {
			return a, unknownFlag(tok, a.command, globals)
		}
		if !takesValue(flag) {
			if !hasValue {
				value = "true"
			}
		} else if !hasValue {
			if i++; i == len(args) {
				return a, usagef("flag %s needs a value", tok).WithHint("%s", usageHint(a.command))
			}
			value = args[i]
			// --arg takes engine arguments, which look like flags; for any other flag
			// a known flag in the value's place means that the value was forgotten.
			if flag.Names()[0] != "arg" && looksLikeFlag(value, a.command, globals) {
				return a, usagef("flag %s needs a value, but the flag %s follows it", tok, value).
					WithHint("write %s=%s if that is the value", tok, value)
			}
		}
		out := "--" + flag.Names()[0] + "=" + value
		if global {
			before = append(before, out)
		} else {
			own = append(own, out)
		}
	}
	if a.command == nil {
		if len(operands) > 0 {
			return a, unknownCommand(operands[0], cmds)
		}
		a.help = true // nothing asked for: say what there is
		return a, nil
	}
	if a.help {
		return a, nil
	}
	if err := a.command.checkCount(operands); err != nil {
		return a, err
	}
	a.args = slices.Concat(before, []string{a.command.name}, own, []string{"--"}, operands)
	return a, nil
}

// findFlag looks a flag up by any of its names, the command's own first.
func findFlag(cmd *command, globals []cli.Flag, name string) (f cli.Flag, global bool) {
	if cmd != nil {
		for _, f := range cmd.flags {
			if slices.Contains(f.Names(), name) {
				return f, false
			}
		}
	}
	for _, f := range globals {
		if slices.Contains(f.Names(), name) {
			return f, true
		}
	}
	return nil, false
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

func looksLikeFlag(s string, cmd *command, globals []cli.Flag) bool {
	if len(s) < 2 || s[0] != '-' {
		return false
	}
	name, _, _ := strings.Cut(strings.TrimLeft(s, "-"), "=")
	f, _ := findFlag(cmd, globals, name)
	return f != nil || name == "help" || name == "h"
}

func unknownFlag(tok string, cmd *command, globals []cli.Flag) error {
	name, _, _ := strings.Cut(tok, "=")
	where := "before the command"
	var known []string
	if cmd != nil {
		where = "for warmctl " + cmd.name
		for _, f := range cmd.flags {
			known = append(known, f.Names()...)
		}
	}
	for _, f := range globals {
		known = append(known, f.Names()...)
	}
	e := usagef("unknown flag %s %s", name, where)
	if near := nearest(strings.TrimLeft(name, "-"), known); near != "" {
		return e.WithHint("did you mean %s? %s", dashed(near), usageHint(cmd))
	}
	if cmd == nil {
		return e.WithHint("flags of a command stand behind it; %s", usageHint(cmd))
	}
	return e.WithHint("%s", usageHint(cmd))
}

func unknownCommand(tok string, cmds []command) error {
	var known []string
	for _, c := range cmds {
		if !c.hidden {
			known = append(known, c.name)
		}
	}
	e := usagef("unknown command %q", tok)
	if near := nearest(tok, known); near != "" {
		return e.WithHint("did you mean warmctl %s? warmctl --help lists every command", near)
	}
	return e.WithHint("warmctl --help lists every command")
}

func usageHint(cmd *command) string {
	if cmd == nil {
		return "warmctl --help"
	}
	return fmt.Sprintf("warmctl %s --help", cmd.name)
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// asksJSON reports whether a command line wants JSON, also one that does not parse.
func asksJSON(args []string) bool {
	for i, a := range args {
		if a == "--" {
			return false
		}
		switch name, value, has := strings.Cut(strings.TrimLeft(a, "-"), "="); {
		case !strings.HasPrefix(a, "-") || (name != "o" && name != "output"):
		case has:
			return value == "json"
		default:
			return i+1 < len(args) && args[i+1] == "json"
		}
	}
	return false
}

// nearest is the known word that a typing mistake or two away, or none.
func nearest(word string, known []string) string {
	best, at := "", 3
	for _, k := range known {
		if len(k) < 3 {
			continue
		}
		if d := distance(word, k); d < at && d < len(k)-1 {
			best, at = k, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal, row[j] = row[j], min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
