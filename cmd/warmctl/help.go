package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

const programShort = "place models on warm inference workers and see what they do"

const programLong = `warmd keeps warm inference workers on GPU hosts; warmctl places models on them.
Flags may stand before or behind the arguments of a command; "--" ends them.`

// flagDoc is a flag as help, man pages, reference and completion show it.
type flagDoc struct {
	names       string // "-o, --output"
	value       string // "VALUE", or empty for a switch
	usage       string
	defaultText string
}

// docOf reads a flag. The usage of a flag with a value begins with the value's
// name in backquotes.
func docOf(f cli.Flag) flagDoc {
	var d flagDoc
	var names []string
	for _, n := range f.Names() {
		if len(n) == 1 {
			names = append([]string{"-" + n}, names...)
		} else {
			names = append(names, "--"+n)
		}
	}
	d.names = strings.Join(names, ", ")
	g, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return d
	}
	d.usage = g.GetUsage()
	if g.TakesValue() {
		d.value = "VALUE"
		if rest, ok := strings.CutPrefix(d.usage, "`"); ok {
			d.value, d.usage, _ = strings.Cut(rest, "`")
			d.usage = strings.TrimPrefix(d.usage, ": ")
		}
		if s, ok := f.(*cli.StringFlag); ok && s.Value != "" {
			d.defaultText = s.Value
		}
		if s, ok := f.(*cli.IntFlag); ok {
			d.defaultText = fmt.Sprint(s.Value)
		}
	}
	return d
}

func visible(flags []cli.Flag) []flagDoc {
	var out []flagDoc
	for _, f := range flags {
		if v, ok := f.(cli.VisibleFlag); !ok || v.IsVisible() {
			out = append(out, docOf(f))
		}
	}
	return out
}

// helpText is the help of a command, or of the program for nil.
func helpText(c *command) string {
	var b strings.Builder
	if c == nil {
		fmt.Fprintf(&b, "warmctl - %s\n\nUSAGE\n  warmctl COMMAND [flags] [arguments]\n\n%s\n\nCOMMANDS\n", programShort, programLong)
		writeCommands(&b)
		b.WriteString("\nGLOBAL FLAGS\n")
		writeFlags(&b, visible(globalFlags()))
		b.WriteString("\nADDRESSES\n" + indent(addressHelp, "  ") + "\n\nEXIT CODES\n")
		for _, e := range exitCodes {
			fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.says)
		}
		b.WriteString("\nEXAMPLES\n  # try it: one host, everything in one process\n  warmd dev &\n  warmctl place /models/opt-125m\n" +
			"\nwarmctl COMMAND --help says more about a command.\n")
		return b.String()
	}
	fmt.Fprintf(&b, "warmctl %s - %s\n\nUSAGE\n  %s\n", c.name, c.short, usageLine(c))
	if c.long != "" {
		fmt.Fprintf(&b, "\n%s\n", c.long)
	}
	if flags := visible(c.flags); len(flags) > 0 {
		b.WriteString("\nFLAGS\n")
		writeFlags(&b, flags)
	}
	if len(c.examples) > 0 {
		b.WriteString("\nEXAMPLES\n")
		for _, e := range c.examples {
			if e.says != "" {
				fmt.Fprintf(&b, "  # %s\n", e.says)
			}
			fmt.Fprintf(&b, "  %s\n", e.line)
		}
	}
	b.WriteString("\nGlobal flags (--server, --agent, -o table|json), addresses and exit codes: warmctl --help.\n")
	return b.String()
}

func usageLine(c *command) string {
	line := "warmctl " + c.name
	if len(visible(c.flags)) > 0 {
		line += " [flags]"
	}
	if c.args != "" {
		line += " " + c.args
	}
	return line
}

func writeCommands(b *strings.Builder) {
	for _, c := range commands() {
		if !c.hidden {
			fmt.Fprintf(b, "  %-11s %s\n", c.name, c.short)
		}
	}
}

// writeFlags prints flags with their usage wrapped into the second column.
func writeFlags(b *strings.Builder, flags []flagDoc) {
	const column = 26
	for _, f := range flags {
		head := "  " + f.head()
		usage := f.usage
		if f.defaultText != "" {
			usage += " (default " + f.defaultText + ")"
		}
		for i, line := range wrapText(usage, 80-column) {
			switch {
			case i > 0:
				head = ""
			case len(head) > column-2:
				b.WriteString(head + "\n")
				head = ""
			}
			fmt.Fprintf(b, "%-*s%s\n", column, head, line)
		}
	}
}

// head is the flag with its value's name; without a short form it is indented, so
// that the long ones line up.
func (f flagDoc) head() string {
	h := f.names
	if !strings.HasPrefix(h, "-") || strings.HasPrefix(h, "--") {
		h = "    " + h
	}
	if f.value != "" {
		h += " " + f.value
	}
	return h
}

// wrapText breaks text at spaces.
func wrapText(s string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

func indent(s, by string) string { return by + strings.ReplaceAll(s, "\n", "\n"+by) }
