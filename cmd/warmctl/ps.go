package main

import (
	"slices"
	"sort"

	"github.com/urfave/cli/v2"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func psCommand() command {
	return command{
		name: "ps", short: "list placements",
		long: `Lists what is placed and not over, newest last; --all adds failed and released
placements with the reason. Without a coordinator the local agent answers for its node.`,
		examples: []example{
			{"warmctl ps", ""},
			{"warmctl ps --all -o json | jq -r '.[] | select(.state == \"failed\") | .reason'", "why did placements fail?"},
		},
		flags: []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "also failed and released ones"}},
		run: func(c *call) error {
			all, path := c.flags.Bool("all"), "/v1/placements"
			if all {
				path += "?all=1"
			}
			ps, who, err := ask(c,
				func(k *coordapi.Client) ([]placement.Placement, error) {
					return get[[]placement.Placement](c.ctx, c, k.Conn, path)
				},
				func(k *agentapi.Client) ([]placement.Placement, error) {
					ps, err := k.Placements(c.ctx)
					return keep(ps, all), err
				})
			if err != nil {
				return err
			}
			sortPlacements(ps)
			err = list(c, ps, "no placements; warmctl place MODEL makes one", func() { c.printPlacements(ps, all) })
			c.footnotes(who)
			return err
		},
	}
}

// keep drops what is over, as the coordinator does.
func keep(ps []placement.Placement, all bool) []placement.Placement {
	out := ps[:0]
	for _, p := range ps {
		if all || !p.State.Terminal() {
			out = append(out, p)
		}
	}
	return out
}

func sortPlacements(ps []placement.Placement) {
	sort.SliceStable(ps, func(i, j int) bool {
		if !ps[i].Created.Equal(ps[j].Created) {
			return ps[i].Created.Before(ps[j].Created)
		}
		return ps[i].ID < ps[j].ID
	})
}

func (c *call) printPlacements(ps []placement.Placement, reasons bool) {
	// A placement whose node is silent has a reason too.
	reasons = reasons || slices.ContainsFunc(ps, func(p placement.Placement) bool { return p.Reason != "" })
	head := []string{"ID", "NAME", "STATE", "TIER", "NODE", "DEVICE", "RUNTIME", ">START", ">AGE", "ENDPOINT"}
	if reasons {
		head = append(head, "REASON")
	}
	t := newTable(head...)
	for _, p := range ps {
		row := []string{p.ID, p.Request.ServedName(), stateText(p), string(p.Tier), p.Node, shortDevice(p.Device), p.Runtime, seconds(p.StartSeconds), c.since(p.Created), p.Endpoint}
		if reasons {
			row = append(row, p.Reason)
		}
		t.add(row...)
	}
	t.write(c.Out, "")
}
