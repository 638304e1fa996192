package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func releaseCommand() command {
	return command{
		name: "release", args: "ID...", min: 1, max: -1, complete: "placements",
		short: "end placements and free their slots",
		long: `ID is a placement id, a unique prefix of one, or the name a model is served under.
Requests under way are given the grace to finish; then the worker is killed. release
comes back when the slot is proven free. What is released already stays released.`,
		examples: []example{
			{"warmctl release p-4f2a", ""},
			{"warmctl release opt-125m llama-3-8b --grace 0", "at once, by name"},
			{"warmctl ps -o json | jq -r '.[].id' | xargs warmctl release", "everything"},
		},
		flags: []cli.Flag{&cli.StringFlag{Name: "grace", Value: "10s", Usage: "`TIME`: time for requests under way to finish"}},
		run: func(c *call) error {
			grace, err := parseTime(c.flags.String("grace"))
			if err != nil {
				return usagef("--grace %v", err)
			}
			released := []placement.Placement{}
			var first error
			for i, id := range c.args {
				p, err := onCoordinator(c, func(k *coordapi.Client) (placement.Placement, error) {
					return k.Release(c.ctx, id, grace.Seconds())
				})
				if c.ctx.Err() != nil {
					return &exitError{exitInterrupted, placement.Errorf(placement.CodeInternal, "interrupted; the release of %s goes on", id)}
				}
				if err == nil {
					released = append(released, p)
					if !c.json {
						fmt.Fprintln(c.Out, releasedText(p))
					}
					continue
				}
				// One id that is wrong must not keep the others' slots taken; the first
				// error decides the exit code, the later ones are told here.
				if first == nil {
					first = err
				} else {
					c.report(err, exitCode(err), c.json)
				}
				if c.notReached(err) != "" && i < len(c.args)-1 {
					break // the server is gone for the others too
				}
			}
			if c.json {
				if err := c.printJSON(released); err != nil {
					return err
				}
			}
			return first
		},
	}
}

// releasedText says what became of a placement; one that had failed stays failed.
func releasedText(p placement.Placement) string {
	name := fmt.Sprintf("%s (%s)", p.ID, p.Request.ServedName())
	switch {
	case p.State != placement.Released:
		return fmt.Sprintf("%s was over already: %s", name, p.State)
	case p.Node == "":
		return "released " + name
	}
	return fmt.Sprintf("released %s on %s/%s: the slot is free", name, p.Node, shortDevice(p.Device))
}
