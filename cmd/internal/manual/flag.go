// Package manual is how the programs describe themselves: flags as help, man pages
// and references show them, pages in roff, and the scripts that let a shell ask a
// program what could stand on its line. It knows no command of either program.
package manual

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// Flag is a flag as help, man pages, reference and completion show it.
type Flag struct {
	Names   string // "-o, --output"
	Value   string // "VALUE", or empty for a switch
	Usage   string
	Default string
}

// FlagOf reads a flag. The name of its value stands in backquotes in its usage; one
// with a colon behind it is a heading, and is cut off.
func FlagOf(f cli.Flag) Flag {
	var d Flag
	var names []string
	for _, n := range f.Names() {
		if len(n) == 1 {
			names = append([]string{"-" + n}, names...)
		} else {
			names = append(names, "--"+n)
		}
	}
	d.Names = strings.Join(names, ", ")
	g, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return d
	}
	d.Usage = g.GetUsage()
	if !g.TakesValue() {
		return d
	}
	d.Value = "VALUE"
	if before, rest, ok := strings.Cut(d.Usage, "`"); ok {
		value, after, _ := strings.Cut(rest, "`")
		d.Value, d.Usage = value, before+value+after
		if colon, ok := strings.CutPrefix(after, ":"); ok && before == "" {
			d.Usage = strings.TrimSpace(colon)
		}
	}
	switch f := f.(type) {
	case *cli.StringFlag:
		d.Default = f.Value
		if f.DefaultText != "" {
			d.Default = f.DefaultText
		}
	case *cli.IntFlag:
		if f.Value != 0 {
			d.Default = fmt.Sprint(f.Value)
		}
	}
	return d
}

// Flags reads the flags that are not hidden.
func Flags(flags []cli.Flag) []Flag {
	var out []Flag
	for _, f := range flags {
		if v, ok := f.(cli.VisibleFlag); !ok || v.IsVisible() {
			out = append(out, FlagOf(f))
		}
	}
	return out
}

// Head is the flag with its value's name; without a short form it is indented, so
// that the long ones line up.
func (f Flag) Head() string {
	h := f.Names
	if !strings.HasPrefix(h, "-") || strings.HasPrefix(h, "--") {
		h = "    " + h
	}
	if f.Value != "" {
		h += " " + f.Value
	}
	return h
}
