package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"warmd/cmd/internal/manual"
)

// docsCommand writes what is generated from the commands: man pages, the
// reference and the completion scripts. A test fails when they are out of date.
func docsCommand() command {
	return command{
		name: "docs", short: "write man pages, REFERENCE.md and completion scripts", hidden: true,
		long:     "Run it in the root of the source tree after a change of a command or a flag.",
		examples: []example{{"go run ./cmd/warmctl docs", ""}},
		flags:    []cli.Flag{&cli.StringFlag{Name: "dir", Value: ".", Usage: "`ROOT`: root of the source tree"}},
		run: func(c *call) error {
			files := generated()
			var names []string
			for name := range files {
				names = append(names, name)
			}
			slices.Sort(names)
			for _, name := range names {
				path := filepath.Join(c.flags.String("dir"), name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					return fmt.Errorf("make folder: %w", err)
				}
				if err := os.WriteFile(path, []byte(files[name]), 0o644); err != nil {
					return fmt.Errorf("write document: %w", err)
				}
			}
			if c.json {
				return c.printJSON(names)
			}
			for _, name := range names {
				fmt.Fprintln(c.Out, name)
			}
			return nil
		},
	}
}

// generated is every generated file, by its path in the source tree.
func generated() map[string]string {
	files := map[string]string{
		"cmd/warmctl/REFERENCE.md": referenceText(),
		"packaging/man/warmctl.1":  manProgram(),
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		files["packaging/completions/"+manual.CompletionFile(shell, "warmctl")], _ = manual.Completion(shell, "warmctl")
	}
	for _, c := range commands() {
		if !c.hidden {
			files["packaging/man/warmctl-"+c.name+".1"] = manCommand(c)
		}
	}
	return files
}
