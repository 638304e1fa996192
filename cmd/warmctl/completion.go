package main

import (
	_ "embed"
	"fmt"
)

// The scripts are thin: they hand the words of the line to `warmctl __complete`,
// so that all three shells complete the same, and a new flag needs no new script.
var (
	//go:embed completion/warmctl.bash
	bashScript string
	//go:embed completion/warmctl.zsh
	zshScript string
	//go:embed completion/warmctl.fish
	fishScript string
)

// completionFiles are the names under which packages install them.
var completionFiles = map[string]string{"bash": "warmctl.bash", "zsh": "_warmctl", "fish": "warmctl.fish"}

func completionScript(shell string) (string, bool) {
	s, ok := map[string]string{"bash": bashScript, "zsh": zshScript, "fish": fishScript}[shell]
	return s, ok
}

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
			script, ok := completionScript(shell)
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
