package main

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// allArgs returns a command's words and what stands behind "--". urfave/cli stops
// at the first word; the flags behind it are read here, because a flag that is
// silently ignored does something other than asked for.
func allArgs(c *cli.Context) (words, rest []string, err error) {
	args := c.Args().Slice()
	for len(args) > 0 {
		if args[0] == "--" {
			return words, args[1:], nil
		}
		if !strings.HasPrefix(args[0], "-") || args[0] == "-" {
			words, args = append(words, args[0]), args[1:]
			continue
		}
		if args[0] == "--help" || args[0] == "-h" {
			return nil, nil, errors.Join(cli.ShowSubcommandHelp(c), cli.Exit("", 0))
		}
		set := flag.NewFlagSet(c.Command.Name, flag.ContinueOnError)
		set.SetOutput(new(strings.Builder)) // its error is enough
		for _, f := range c.Command.Flags {
			if err := f.Apply(set); err != nil {
				return nil, nil, err
			}
		}
		if err := set.Parse(args); err != nil {
			return nil, nil, cli.Exit(fmt.Sprintf("%v; %s --help lists the flags", err, c.Command.HelpName), 2)
		}
		if err := carry(c, set); err != nil {
			return nil, nil, err
		}
		// Parse eats a "--" that follows a flag directly; it must stay a border.
		parsed := args[:len(args)-set.NArg()]
		args = set.Args()
		if len(parsed) > 0 && parsed[len(parsed)-1] == "--" {
			return words, args, nil
		}
	}
	return words, nil, nil
}

// carry sets what was found behind a word, under every name of its flag.
func carry(c *cli.Context, set *flag.FlagSet) (err error) {
	set.Visit(func(f *flag.Flag) {
		values := []string{f.Value.String()}
		if list, ok := f.Value.(*cli.StringSlice); ok {
			values = list.Value() // one by one: Set adds to what stood before the word
		}
		for _, known := range c.Command.Flags {
			if !slices.Contains(known.Names(), f.Name) {
				continue
			}
			for _, n := range known.Names() {
				for _, v := range values {
					err = errors.Join(err, c.Set(n, v))
				}
			}
		}
	})
	return err
}

func oneWord(words []string, usage string) (string, error) {
	switch len(words) {
	case 1:
		return words[0], nil
	case 0:
		return "", cli.Exit("no NAME: warmd "+usage, 2)
	}
	return "", tooMany(words[1:])
}

func tooMany(words []string) error {
	if len(words) == 0 {
		return nil
	}
	return cli.Exit(fmt.Sprintf("unexpected %q", words), 2)
}
