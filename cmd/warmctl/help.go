package main

import (
	"fmt"
	"strings"

	"warmd/cmd/internal/manual"
)

const programShort = "place models on warm inference workers and see what they do"

const programLong = `warmd keeps warm inference workers on GPU hosts; warmctl places models on them.
Flags may stand before or behind the arguments of a command; "--" ends them.`

// helpText is the help of a command, or of the program for nil.
func helpText(c *command) string {
	var b strings.Builder
	if c == nil {
		fmt.Fprintf(&b, "warmctl - %s\n\nUSAGE\n  warmctl COMMAND [flags] [arguments]\n\n%s\n\nCOMMANDS\n", programShort, programLong)
		writeCommands(&b)
		b.WriteString("\nGLOBAL FLAGS\n")
		writeFlags(&b, manual.Flags(globalFlags()))
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
	if flags := manual.Flags(c.flags); len(flags) > 0 {
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
	if len(manual.Flags(c.flags)) > 0 {
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
func writeFlags(b *strings.Builder, flags []manual.Flag) {
	const column = 26
	for _, f := range flags {
		head := "  " + f.Head()
		usage := f.Usage
		if f.Default != "" {
			usage += " (default " + f.Default + ")"
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

func indent(s, by string) string {
	return by + strings.ReplaceAll(strings.ReplaceAll(s, "\n", "\n"+by), "\n"+by+"\n", "\n\n")
}
