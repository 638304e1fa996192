package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
)

func logsCommand() command {
	return command{
		name: "logs", args: "ID", min: 1, max: 1, complete: "placements",
		short: "print what the engine of a placement logged",
		long: `ID is a placement id, a unique prefix of one, or a served name. With -f the log is
followed until the worker is gone or Ctrl-C. With -o json every line is an object.`,
		examples: []example{
			{"warmctl logs opt-125m --tail 50", ""},
			{"warmctl logs p-4f2a -f", "follow it"},
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on with new lines"},
			&cli.IntFlag{Name: "tail", Value: 200, Usage: "`N`: lines to begin with"},
		},
		run: func(c *call) error {
			tail, follow := c.flags.Int("tail"), c.flags.Bool("follow")
			if tail < 0 {
				return usagef("--tail %d must not be negative", tail)
			}
			body, _, err := ask(c,
				func(k *coordapi.Client) (io.ReadCloser, error) { return k.Logs(c.ctx, c.args[0], tail, follow) },
				func(k *agentapi.Client) (io.ReadCloser, error) {
					p, err := resolveOnAgent(c, k, c.args[0])
					if err != nil {
						return nil, err
					}
					return k.Logs(c.ctx, p.ID, tail, follow)
				})
			if err != nil {
				return err
			}
			defer body.Close()
			return c.copyLog(body)
		},
	}
}

// copyLog prints a log: as it is into files and pipes, without the control
// characters that move a cursor on a terminal, one object a line for JSON.
func (c *call) copyLog(r io.Reader) error {
	if !c.json && !c.OutTTY {
		if _, err := io.Copy(c.Out, r); err != nil {
			return c.logBroke(err)
		}
		return nil
	}
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			if line[len(line)-1] == '\n' {
				line = line[:len(line)-1]
			}
			line = printable(strings.TrimSuffix(line, "\r"))
			if c.json {
				if err := c.printLine(struct {
					Line string `json:"line"`
				}{line}); err != nil {
					return err
				}
			} else {
				fmt.Fprintln(c.Out, line)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.logBroke(err)
		}
	}
}

func (c *call) logBroke(err error) error {
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	return fmt.Errorf("read log: %w", err)
}
