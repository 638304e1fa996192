package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"warmd/cmd/internal/manual"
)

// docsTool is who makes the man pages and completion scripts.
const docsTool = "go run ./cmd/warmd docs"

// docsCommand writes what is generated from the commands and from the configuration
// files of the packages. A test fails when something is out of date.
func docsCommand(app *cli.App) *cli.Command {
	return &cli.Command{
		Name: "docs", Usage: "write man pages and completion scripts", Hidden: true,
		Flags: []cli.Flag{&cli.StringFlag{Name: "dir", Value: ".", Usage: "`ROOT` of the source tree"}},
		Action: func(c *cli.Context) error {
			files, err := generated(app, c.String("dir"))
			if err != nil {
				return err
			}
			for _, name := range slices.Sorted(maps.Keys(files)) {
				path := filepath.Join(c.String("dir"), name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					return fmt.Errorf("make folder: %w", err)
				}
				if err := os.WriteFile(path, []byte(files[name]), 0o644); err != nil {
					return fmt.Errorf("write document: %w", err)
				}
				fmt.Fprintln(c.App.Writer, name)
			}
			return nil
		},
	}
}

// generated is every generated file, by its path in the source tree.
func generated(app *cli.App, root string) (map[string]string, error) {
	files := map[string]string{"packaging/man/warmd.8": manProgram(app)}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		files["packaging/completions/"+manual.CompletionFile(shell, "warmd")], _ = manual.Completion(shell, "warmd")
	}
	for _, c := range app.Commands {
		if !c.Hidden {
			files["packaging/man/warmd-"+c.Name+".8"] = manCommand(c)
		}
	}
	for _, name := range []string{"agent", "coordinator"} {
		text, err := os.ReadFile(filepath.Join(root, "packaging/config", name+".toml"))
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		files["packaging/man/warmd-"+name+".toml.5"] = manConfig(name, string(text))
	}
	return files, nil
}
