package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func eventsCommand() command {
	return command{
		name: "events", short: "show what happened: starts, deaths, refills, drains",
		long: `Prints the events that are kept, oldest first; with -f it goes on with new ones
until Ctrl-C. Without a coordinator the local agent answers for its node.`,
		examples: []example{
			{"warmctl events", ""},
			{"warmctl events -f -o json | jq -r 'select(.kind == \"worker.dead\") | .message'", "tell me when a worker dies"},
		},
		flags: []cli.Flag{&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on with new events"}},
		run: func(c *call) error {
			follow := c.flags.Bool("follow")
			all := []placement.Event{}
			each := func(e placement.Event) bool {
				switch {
				case !follow:
					all = append(all, e)
				case c.json:
					return c.printLine(e) == nil
				default:
					c.printEvent(e)
				}
				return true
			}
			_, who, err := ask(c,
				func(k *coordapi.Client) (struct{}, error) {
					if follow {
						return struct{}{}, k.Events(c.ctx, true, each)
					}
					kept, err := get[[]placement.Event](c.ctx, c, k.Conn, "/v1/events")
					all = kept
					return struct{}{}, err
				},
				func(k *agentapi.Client) (struct{}, error) { return struct{}{}, k.Events(c.ctx, follow, each) })
			if err != nil || follow {
				return err
			}
			err = list(c, all, "no events", func() {
				for _, e := range all {
					c.printEvent(e)
				}
			})
			c.footnotes(who)
			return err
		},
	}
}

// printEvent prints one event; columns have a fixed width, because a stream
// cannot know what comes.
func (c *call) printEvent(e placement.Event) {
	subject := e.Placement
	for _, s := range []string{e.Worker, e.Device} {
		if subject == "" {
			subject = s
		}
	}
	if subject == "" {
		subject = "-"
	}
	fmt.Fprintf(c.Out, "%s  %-12s  %-18s  %-16s  %s\n", e.At.UTC().Format("2006-01-02T15:04:05.000Z"),
		printable(e.Node), printable(e.Kind), printable(shortDevice(subject)), printable(e.Message))
}
