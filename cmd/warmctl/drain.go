package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func drainCommand() command {
	return command{
		name: "drain", args: "NODE", min: 1, max: 1, complete: "nodes",
		short: "let a node take no new placements, and wait until it is empty",
		long: `What runs on the node goes on; workers that wait parked are ended. The command tells
what has ended, and comes back when nothing runs on the node any more: release its
placements, or let their owners do it. The mark survives a restart of the agent, and an
end of this command, until warmctl undrain. For the node it runs on it works without a
coordinator too.`,
		examples: []example{
			{"warmctl drain gpu-host-1 --timeout 30m", "before maintenance"},
			{"warmctl drain gpu-host-1 --no-wait", "only say what still runs there"},
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-wait", Usage: "do not wait until nothing runs there"},
			&cli.StringFlag{Name: "timeout", Value: "10m", Usage: "`TIME`: longest wait; the node goes on draining"},
		},
		run: runDrain,
	}
}

func undrainCommand() command {
	return command{
		name: "undrain", args: "NODE", min: 1, max: 1, complete: "nodes",
		short:    "let a drained node take placements again",
		examples: []example{{"warmctl undrain gpu-host-1", ""}},
		run: func(c *call) error {
			capacity, err := c.setDrain(false)
			if err != nil || c.json {
				return orJSON(c, capacity, err)
			}
			_, free, _, _, warm := capacity.Totals()
			fmt.Fprintf(c.Out, "%s takes placements again: %s free, %s\n", capacity.Node, plural(free, "slot"), plural(warm, "warm worker"))
			return nil
		},
	}
}

// setDrain asks the coordinator, or the local agent if that is the node.
func (c *call) setDrain(drain bool) (placement.Capacity, error) {
	node := c.args[0]
	got, _, err := ask(c,
		func(k *coordapi.Client) (placement.Capacity, error) { return k.SetDrain(c.ctx, node, drain) },
		func(k *agentapi.Client) (placement.Capacity, error) {
			status, err := k.Node(c.ctx)
			if err != nil {
				return placement.Capacity{}, err
			}
			if status.Capacity.Node != node {
				return placement.Capacity{}, placement.Errorf(placement.CodeUnavailable,
					"only the coordinator can reach node %s, and it did not answer: the local agent is %s", node, status.Capacity.Node).
					WithHint("run this on %s, or bring the coordinator back", node)
			}
			return k.SetDrain(c.ctx, drain)
		})
	return got, err
}

// drained is the JSON answer of drain.
type drained struct {
	Node     string `json:"node"`
	Draining bool   `json:"draining"`
	// Left is what still runs there.
	Left     []string           `json:"left"`
	Capacity placement.Capacity `json:"capacity"`
}

func runDrain(c *call) error {
	timeout, err := parseTime(c.flags.String("timeout"))
	if err != nil {
		return usagef("--timeout %v", err)
	}
	capacity, err := c.setDrain(true)
	if err != nil {
		return err
	}
	left, err := c.running(c.ctx, capacity.Node)
	if err != nil {
		return err
	}
	if !c.json {
		fmt.Fprintf(c.Out, "%s takes no new placements\n", capacity.Node)
	}
	if !c.flags.Bool("no-wait") && !left.empty() {
		if left, err = c.waitEmpty(capacity.Node, timeout, left); err != nil {
			return err
		}
	}
	switch {
	case c.json:
		return c.printJSON(drained{capacity.Node, true, left.ids(), capacity})
	case left.empty():
		fmt.Fprintf(c.Out, "nothing runs on %s\n", capacity.Node)
	case len(left.placements) == 0:
		fmt.Fprintf(c.Out, "%s still busy\n", plural(left.busy, "slot"))
	default:
		fmt.Fprintf(c.Out, "still there: %s\n  release  warmctl release %s\n", left, strings.Join(left.ids(), " "))
	}
	return nil
}

// remains is what still runs on a node. A slot can be busy without a placement: its
// worker is ending.
type remains struct {
	placements []placement.Placement
	busy       int
}

func (r remains) empty() bool { return len(r.placements) == 0 && r.busy == 0 }

func (r remains) ids() []string {
	ids := []string{}
	for _, p := range r.placements {
		ids = append(ids, p.ID)
	}
	return ids
}

func (r remains) String() string {
	var names []string
	for _, p := range r.placements {
		names = append(names, p.ID+" ("+p.Request.ServedName()+")")
	}
	if len(names) == 0 {
		return plural(r.busy, "slot") + " whose workers end"
	}
	return strings.Join(names, ", ")
}

// running is what runs on a node now.
func (c *call) running(ctx context.Context, node string) (left remains, err error) {
	ps, _, err := ask(c,
		func(k *coordapi.Client) ([]placement.Placement, error) { return k.Placements(ctx, false) },
		func(k *agentapi.Client) ([]placement.Placement, error) {
			ps, err := k.Placements(ctx)
			return keep(ps, false), err
		})
	if err != nil {
		return left, err
	}
	sortPlacements(ps)
	for _, p := range ps {
		if p.Node == node && !p.State.Terminal() {
			left.placements = append(left.placements, p)
		}
	}
	fleet, _, err := ask(c,
		func(k *coordapi.Client) (placement.Fleet, error) { return k.Fleet(ctx) },
		func(k *agentapi.Client) (placement.Fleet, error) { return k.Fleet(ctx) })
	if err != nil {
		return left, err
	}
	for _, n := range fleet.Nodes {
		if n.Node == node {
			_, _, left.busy, _, _ = n.Totals()
		}
	}
	return left, nil
}

// waitEmpty looks until nothing runs on the node, and tells what has ended.
func (c *call) waitEmpty(node string, timeout time.Duration, left remains) (remains, error) {
	ctx, cancel := context.WithTimeout(c.ctx, timeout)
	defer cancel()
	show := c.newProgress("draining "+node, "", false)
	defer show.stop()
	tick := time.NewTicker(c.Poll)
	defer tick.Stop()
	said := ""
	for !left.empty() {
		now := "waiting for " + left.String()
		show.note(now)
		if now != said && !show.tty {
			said = now
			fmt.Fprintln(c.Err, now)
		}
		select {
		case <-ctx.Done():
			show.stop()
			return left, drainStopped(c.ctx, node, timeout, left)
		case <-tick.C:
		}
		seen, err := c.running(ctx, node)
		if ctx.Err() != nil {
			show.stop()
			return left, drainStopped(c.ctx, node, timeout, left)
		}
		if err != nil {
			return left, err
		}
		for _, p := range left.placements {
			if !c.json && !slices.Contains(seen.ids(), p.ID) {
				show.result("%s (%s) has ended", p.ID, p.Request.ServedName())
			}
		}
		left = seen
	}
	return left, nil
}

func drainStopped(ctx context.Context, node string, timeout time.Duration, left remains) error {
	if ctx.Err() != nil {
		return &exitError{exitInterrupted, placement.Errorf(placement.CodeInternal, "interrupted; %s goes on draining", node).
			WithHint("warmctl undrain %s takes it back", node)}
	}
	e := placement.Errorf(placement.CodeTimeout, "%s is not empty after %s: %s", node, timeout, left)
	if len(left.placements) == 0 {
		return e.WithHint("warmctl workers shows what is ending; the node goes on draining")
	}
	return e.WithHint("warmctl release %s; the node goes on draining", strings.Join(left.ids(), " "))
}
