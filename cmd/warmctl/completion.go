package main

import (
	"fmt"

	"warmd/cmd/internal/manual"
)

func completionCommand() command {
	return command{
		name: "completion", args: "bash|zsh|fish", min: 1, max: 1, complete: "bash zsh fish",
		short: "print the completion script of a shell",
		long: `Commands, flags and their values, placements and nodes are completed; the last two
are asked from the server, for at most a second. Packages install the scripts.`,
		examples: []example{
			{"source <(warmctl completion bash)", "bash: in ~/.bashrc"},
			{"warmctl completion zsh > \"${fpath[1]}/_warmctl\"", "zsh"},
			{"warmctl completion fish > ~/.config/fish/completions/warmctl.fish", "fish"},
		},
		run: func(c *call) error {
			shell := c.args[0]
			script, ok := manual.Completion(shell, "warmctl")
			if !ok {
				return usagef("no completion for shell %q", shell).WithHint("bash, zsh and fish are known")
			}
			if c.json {
				return c.printJSON(map[string]string{"shell": shell, "script": script})
			}
			_, err := fmt.Fprint(c.Out, script)
			return err
		},
	}
}
