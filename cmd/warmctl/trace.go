package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func traceCommand() command {
	return command{
		name: "trace", args: "[ID | diff A B]", max: 3, complete: "placements",
		short: "show the phases of a start as a waterfall, or of many as percentiles",
		long: `Without ID it lists the traces that are kept, newest first. With ID (a placement id,
a unique prefix of one, or a served name) it draws the start: first the phases that
were over before the request, which is what warmth means, then those that the
request waited for, each with the process that did it. -o json has every span. Of a
start that was a moment ago it waits up to 2.5 s for the engine's last spans.

diff A B compares two starts phase by phase and lists what got slower first. --stats
gives percentiles of every phase over all kept starts that came to a first token, for
each model, node and tier.`,
		examples: []example{
			{"warmctl trace opt-125m", ""},
			{"warmctl trace p-4f2a --ascii > start.txt", "for a ticket"},
			{"warmctl trace --stats --model opt-125m --tier warm", "is it always like that?"},
			{"warmctl trace diff p-4f2a p-9c01", "what got slower?"},
			{"warmctl trace -o json | jq '.[0].total_seconds'", "how long did the newest start take?"},
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "ascii", Usage: "draw with ASCII (the default when the locale is not UTF-8)"},
			&cli.BoolFlag{Name: "stats", Usage: "percentiles by model, node, tier and phase"},
			&cli.StringFlag{Name: "model", Usage: "`NAME`: with --stats, only starts of this model: its path, or the last part of it"},
			&cli.StringFlag{Name: "node", Usage: "`NODE`: with --stats, only starts there"},
			&cli.StringFlag{Name: "tier", Usage: "`TIER`: with --stats, only starts that were serving, sleeping, warm or cold"},
		},
		run: func(c *call) error {
			switch n := len(c.args); {
			case c.flags.Bool("stats") && n > 0:
				return usagef("--stats is about many starts: it takes no ID")
			case c.flags.Bool("stats"):
				return traceStats(c)
			case n == 3 && c.args[0] == "diff":
				return traceDiff(c, c.args[1], c.args[2])
			case n > 1:
				return usagef("trace takes one ID, or: trace diff A B").WithHint("%s", usageHint(findCommand(commands(), "trace")))
			case n == 0:
				return listTraces(c)
			}
			t, who, err := wholeTrace(c, c.args[0])
			if err != nil || c.json {
				return orJSON(c, t, err)
			}
			fmt.Fprint(c.Out, waterfall(t, c.Width, c.flags.Bool("ascii") || !c.utf8()))
			c.footnotes(who)
			return nil
		},
	}
}

// spansDue is how long after a start an engine's last spans come: otlp.Env has it send every 2 s.
const spansDue = 2500 * time.Millisecond

// wholeTrace waits for the last spans of a start that was a moment ago: a picture
// without them would show everything but where the time went.
func wholeTrace(c *call, key string) (placement.Trace, answerer, error) {
	t, who, err := oneTrace(c, key)
	age := c.Now().Sub(t.Begin) - time.Duration(t.Total*float64(time.Second))
	if err != nil || t.Total == 0 || age < 0 || age >= spansDue {
		return t, who, err
	}
	select {
	case <-c.ctx.Done():
		return t, who, err
	case <-time.After(spansDue - age):
		return oneTrace(c, key)
	}
}

// oneTrace finds the newest trace of what a key means.
func oneTrace(c *call, key string) (placement.Trace, answerer, error) {
	return ask(c,
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
}

// keptTraces are those of every node that answers.
func keptTraces(c *call) ([]placement.Trace, answerer, error) {
	return ask(c,
		func(k *coordapi.Client) ([]placement.Trace, error) {
			return get[[]placement.Trace](c.ctx, c, k.Conn, "/v1/traces")
		},
		func(k *agentapi.Client) ([]placement.Trace, error) { return k.Traces(c.ctx) })
}

func listTraces(c *call) error {
	ts, who, err := keptTraces(c)
	if err != nil {
		return err
	}
	err = list(c, ts, "no traces; warmctl place MODEL makes one", func() {
		tb := newTable("PLACEMENT", "MODEL", "NODE", "DEVICE", "RUNTIME", "TIER", ">TOTAL", ">BEFORE", ">PHASES", ">AGE", "FAILED")
		for _, t := range ts {
			before, _ := splitPhases(t.Phases)
			tb.add(t.Placement, t.Model, t.Node, shortDevice(t.Device), t.Runtime, string(t.Tier), seconds(t.Total), seconds(placement.Covered(before)),
				fmt.Sprint(len(t.Phases)), c.since(t.Begin), t.Failed)
		}
		tb.write(c.Out, "")
	})
	c.footnotes(who)
	return err
}
