package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func traceCommand() command {
	return command{
		name: "trace", args: "[ID]", max: 1, complete: "placements",
		short: "show the phases of a start as a waterfall",
		long: `Without ID it lists the traces that are kept, newest first. With ID (a placement id,
a unique prefix of one, or a served name) it draws the start: first the phases that
were over before the request, which is what warmth means, then those that the
request waited for, each with the process that did it. -o json has every span.`,
		examples: []example{
			{"warmctl trace opt-125m", ""},
			{"warmctl trace p-4f2a --ascii > start.txt", "for a ticket"},
			{"warmctl trace -o json | jq '.[0].total_seconds'", "how long did the newest start take?"},
		},
		flags: []cli.Flag{&cli.BoolFlag{Name: "ascii", Usage: "draw with ASCII (the default when the locale is not UTF-8)"}},
		run: func(c *call) error {
			if len(c.args) == 0 {
				return listTraces(c)
			}
			key := c.args[0]
			t, who, err := ask(c,
				func(k *coordapi.Client) (placement.Trace, error) { return k.Trace(c.ctx, key) },
				func(k *agentapi.Client) (placement.Trace, error) {
					p, err := resolveOnAgent(c, k, key)
					if isNotFound(err) {
						return k.Trace(c.ctx, key) // released, but its trace may be kept
					}
					if err != nil {
						return placement.Trace{}, err
					}
					return k.Trace(c.ctx, p.ID)
				})
			if err != nil || c.json {
				return orJSON(c, t, err)
			}
			fmt.Fprint(c.Out, waterfall(t, c.Width, c.flags.Bool("ascii") || !c.utf8()))
			c.footnotes(who)
			return nil
		},
	}
}

func listTraces(c *call) error {
	ts, who, err := ask(c,
		func(k *coordapi.Client) ([]placement.Trace, error) {
			return get[[]placement.Trace](c.ctx, c, k.Conn, "/v1/traces")
		},
		func(k *agentapi.Client) ([]placement.Trace, error) { return k.Traces(c.ctx) })
	if err != nil {
		return err
	}
	err = list(c, ts, "no traces; warmctl place MODEL makes one", func() {
		tb := newTable("PLACEMENT", "MODEL", "NODE", "DEVICE", "RUNTIME", "TIER", ">TOTAL", ">BEFORE", ">PHASES", ">AGE", "FAILED")
		for _, t := range ts {
			before, _ := splitPhases(t.Phases)
			tb.add(t.Placement, t.Model, t.Node, shortDevice(t.Device), t.Runtime, string(t.Tier), seconds(t.Total), seconds(covered(before)),
				fmt.Sprint(len(t.Phases)), c.since(t.Begin), t.Failed)
		}
		tb.write(c.Out, "")
	})
	c.footnotes(who)
	return err
}
