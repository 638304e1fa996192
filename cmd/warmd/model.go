package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"warmd/agent/runtime"
)

// modelCommand is `warmd model make`: a model to try things with, on a host that
// has none and no network.
func modelCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "preset", Usage: "shapes of a known model: `tiny|opt-125m|llama-1b|llama-8b`", Value: "tiny"},
		&cli.StringFlag{Name: "arch", Usage: "`opt|llama`: the architecture; default: the preset's"},
		&cli.IntFlag{Name: "seed", Usage: "`N` for other weights of the same shapes"},
		&cli.StringFlag{Name: "python", Usage: "`PATH` of the interpreter to run the generator with"},
		outputFlag(),
	}
	shapes := []string{"hidden", "layers", "heads", "kv-heads", "ffn", "vocab", "positions"}
	for _, s := range shapes {
		flags = append(flags, &cli.IntFlag{Name: s, Usage: "`N` in place of the preset's"})
	}
	make := &cli.Command{Name: "make", Usage: "make a model folder with random weights", ArgsUsage: "DIR", Flags: flags}
	make.Action = func(c *cli.Context) error {
		words, _, err := allArgs(c)
		if err != nil {
			return err
		}
		dir, err := oneWord(words, "model make DIR")
		if err != nil {
			return err
		}
		args := []string{"--preset", c.String("preset"), "--seed", fmt.Sprint(c.Int("seed"))}
		if a := c.String("arch"); a != "" {
			args = append(args, "--arch", a)
		}
		for _, s := range shapes {
			if c.IsSet(s) {
				args = append(args, "--"+s, fmt.Sprint(c.Int(s)))
			}
		}
		if dir, err = filepath.Abs(dir); err != nil {
			return fmt.Errorf("make model: %w", err)
		}
		said, err := runtime.MakeModel(c.Context, c.String("python"), dir, args...)
		if err != nil {
			return err
		}
		return printAs(c, map[string]string{"dir": dir, "said": said}, func() { fmt.Fprintln(c.App.Writer, said) })
	}
	return &cli.Command{Name: "model", Usage: "make models to try things with", HideHelpCommand: true, Subcommands: []*cli.Command{make}}
}
