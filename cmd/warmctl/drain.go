package main

import (
	"context"
	"fmt"
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
		short: "let a node take no new placements",
		long: `What runs on the node goes on; parked workers stay. The mark survives a restart of
the agent and ends with warmctl undrain. With --wait the command comes back when
nothing runs on the node any more: release its placements, or let their owners do it.
For the node it runs on it works without a coordinator too.`,
		examples: []example{
			{"warmctl drain gpu-host-1", ""},
			{"warmctl drain gpu-host-1 --wait --timeout 30m", "before maintenance"},
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "wait", Usage: "wait until nothing runs there"},
			&cli.StringFlag{Name: "timeout", Value: "10m", Usage: "`TIME`: longest wait"},
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
	left, busy, err := c.running(c.ctx, capacity.Node)
	if err != nil {
		return err
	}
	if !c.json {
		fmt.Fprintf(c.Out, "%s takes no new placements\n", capacity.Node)
	}
	if c.flags.Bool("wait") && (len(left) > 0 || busy > 0) {
		if left, err = c.waitEmpty(capacity.Node, timeout, left, busy); err != nil {
			return err
		}
		busy = 0
	}
	switch {
	case c.json:
		if left == nil {
			left = []string{}
		}
		return c.printJSON(drained{capacity.Node, true, left, capacity})
	case len(left) == 0 && busy == 0:
		fmt.Fprintf(c.Out, "nothing runs on %s\n", capacity.Node)
	case len(left) == 0:
		fmt.Fprintf(c.Out, "%s still busy\n", plural(busy, "slot"))
	default:
		fmt.Fprintf(c.Out, "still there: %s\n  release  warmctl release %s\n", strings.Join(left, ", "), strings.Join(left, " "))
	}
	return nil
}

// running is what is placed on a node, and how many of its slots are busy.
func (c *call) running(ctx context.Context, node string) (left []string, busy int, err error) {
	ps, _, err := ask(c,
		func(k *coordapi.Client) ([]placement.Placement, error) { return k.Placements(ctx, false) },
		func(k *agentapi.Client) ([]placement.Placement, error) {
			ps, err := k.Placements(ctx)
			return keep(ps, false), err
		})
	if err != nil {
		return nil, 0, err
	}
	sortPlacements(ps)
	for _, p := range ps {
		if p.Node == node && !p.State.Terminal() {
			left = append(left, p.ID)
		}
	}
	fleet, _, err := ask(c,
		func(k *coordapi.Client) (placement.Fleet, error) { return k.Fleet(ctx) },
		func(k *agentapi.Client) (placement.Fleet, error) { return k.Fleet(ctx) })
	if err != nil {
		return nil, 0, err
	}
	for _, n := range fleet.Nodes {
		if n.Node == node {
			_, _, busy, _, _ = n.Totals()
		}
	}
	return left, busy, nil
}

// waitEmpty looks until nothing runs on the node, and tells what went.
func (c *call) waitEmpty(node string, timeout time.Duration, left []string, busy int) ([]string, error) {
	ctx, cancel := context.WithTimeout(c.ctx, timeout)
	defer cancel()
	tick := time.NewTicker(c.Poll)
	defer tick.Stop()
	said := ""
	for len(left) > 0 || busy > 0 {
		if now := fmt.Sprintf("waiting for %s (%s busy)", orNone(left), plural(busy, "slot")); now != said {
			said = now
			fmt.Fprintln(c.Err, now)
		}
		select {
		case <-ctx.Done():
			return left, drainStopped(c.ctx, node, timeout, left)
		case <-tick.C:
		}
		seen, n, err := c.running(ctx, node)
		if ctx.Err() != nil {
			return left, drainStopped(c.ctx, node, timeout, left)
		}
		if err != nil {
			return left, err
		}
		left, busy = seen, n
	}
	return nil, nil
}

func drainStopped(ctx context.Context, node string, timeout time.Duration, left []string) error {
	if ctx.Err() != nil {
		return &exitError{exitInterrupted, placement.Errorf(placement.CodeInternal, "interrupted; %s goes on draining", node).
			WithHint("warmctl undrain %s takes it back", node)}
	}
	e := placement.Errorf(placement.CodeTimeout, "%s is not empty after %s: %s", node, timeout, orNone(left))
	if len(left) == 0 {
		return e.WithHint("warmctl workers shows what is ending; the node goes on draining")
	}
	return e.WithHint("warmctl release %s; the node goes on draining", strings.Join(left, " "))
}

func orNone(ids []string) string {
	if len(ids) == 0 {
		return "workers to end"
	}
	return strings.Join(ids, ", ")
}
