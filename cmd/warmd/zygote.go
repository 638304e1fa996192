package main

import (
	"errors"
	"os"

	"github.com/urfave/cli/v2"

	"warmd/agent"
)

// zygoteCommand is what warmd-runtime@.service runs; nobody types it.
func zygoteCommand() *cli.Command {
	return &cli.Command{
		Name: "zygote", Usage: "become the zygote of a runtime (warmd-runtime@.service runs this)", ArgsUsage: "RUNTIME.GENERATION",
		Hidden: true, HideHelpCommand: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Value: "/etc/warmd/agent.toml", Usage: "`FILE` of the agent's configuration"},
			&cli.BoolFlag{Name: "ended", Usage: "note how it ended instead, from systemd's environment"},
		},
		Action: func(c *cli.Context) error {
			words, _, err := allArgs(c)
			if err != nil {
				return err
			}
			if len(words) != 1 {
				return cli.Exit("give one RUNTIME.GENERATION", 2)
			}
			// A wrong key is the agent's to complain about; it runs on with what it read
			// before, and needs its engines. Three folders are all that is used here.
			cfg, _, err := agent.ReadConfig(c.String("config"))
			if errors.Is(err, os.ErrNotExist) {
				return err
			}
			if c.Bool("ended") {
				return agent.ZygoteEnded(cfg, words[0], os.Getenv)
			}
			return agent.ExecZygote(cfg, words[0])
		},
	}
}
