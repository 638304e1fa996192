package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func sleepCommand() command {
	return command{
		name: "sleep", args: "ID...", min: 1, max: -1, complete: "placements",
		short: "have models give their device memory up",
		long: `ID is a placement id, a unique prefix of one, or the name a model is served under. The
weights move to the host's memory and the KV cache is dropped; the worker, its slot and
its endpoint stay, and requests are answered 503 with Retry-After until ` + "`warmctl wake`" + `.
The model must have been placed with --arg=--enable-sleep-mode, on a GPU, and not cold.
Requests under way are given the grace to finish; if they do not, the model stays awake.

A model that sleeps keeps its slot: its memory serves what runs in the other slots of
the device, where the operator has given it several (slots in agent.toml).`,
		examples: []example{
			{"warmctl place opt-125m --arg=--enable-sleep-mode", "a model that can sleep"},
			{"warmctl sleep opt-125m", ""},
			{"warmctl wake opt-125m", "it answers again"},
		},
		flags: []cli.Flag{&cli.StringFlag{Name: "grace", Value: "10s", Usage: "`TIME`: time for requests under way to finish"}},
		run: func(c *call) error {
			grace, err := parseTime(c.flags.String("grace"))
			if err != nil {
				return usagef("--grace %v", err)
			}
			return c.rest("sleeping", func(k *coordapi.Client, id string) (placement.Placement, error) {
				return k.Sleep(c.ctx, id, grace.Seconds())
			}, func(p placement.Placement) string {
				return fmt.Sprintf("%s sleeps: warmctl wake %s", nameOf(p), p.ID)
			})
		},
	}
}

func wakeCommand() command {
	return command{
		name: "wake", args: "ID...", min: 1, max: -1, complete: "placements",
		short: "have sleeping models serve again",
		long: `ID is a placement id, a unique prefix of one, or the name a model is served under. wake
comes back when a token came out; requests that come meanwhile wait for it. What is awake
is left alone. ` + "`warmctl trace ID`" + ` shows where the time went.`,
		examples: []example{
			{"warmctl wake opt-125m", ""},
			{"warmctl ps -o json | jq -r '.[] | select(.sleeping) | .id' | xargs warmctl wake", "everything that sleeps"},
		},
		run: func(c *call) error {
			return c.rest("waking", func(k *coordapi.Client, id string) (placement.Placement, error) {
				return k.Wake(c.ctx, id)
			}, func(p placement.Placement) string {
				return fmt.Sprintf("%s answers at %s", nameOf(p), p.Endpoint)
			})
		},
	}
}

// rest does one thing to each placement that is named. One id that is wrong does not
// keep it from the others; the first error decides the exit code.
func (c *call) rest(doing string, do func(*coordapi.Client, string) (placement.Placement, error), said func(placement.Placement) string) error {
	done := []placement.Placement{}
	var first error
	for _, id := range c.args {
		show := c.newProgress(doing+" "+id, "asking the coordinator", false)
		p, err := onCoordinator(c, func(k *coordapi.Client) (placement.Placement, error) { return do(k, id) })
		show.stop()
		switch {
		case c.ctx.Err() != nil:
			return &exitError{exitInterrupted, placement.Errorf(placement.CodeInternal, "interrupted; %s %s goes on", doing, id)}
		case err == nil:
			done = append(done, p)
			if !c.json {
				fmt.Fprintln(c.Out, said(p))
			}
		case first == nil:
			first = err
		default:
			c.report(err, exitCode(err), c.json)
		}
	}
	if c.json {
		if err := c.printJSON(done); err != nil {
			return err
		}
	}
	return first
}

func nameOf(p placement.Placement) string {
	return fmt.Sprintf("%s (%s)", p.ID, p.Request.ServedName())
}

// stateText is where a placement stands, for people.
func stateText(p placement.Placement) string {
	if p.Sleeping {
		return "sleeping"
	}
	return string(p.State)
}
