package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func capacityCommand() command {
	return command{
		name: "capacity", short: "show what every device of the fleet has free",
		long: `One line per device: slots, parked warm workers, measured free memory, and how old
the node's word is. Any member can answer from its own view: warmctl asks the
coordinator, then the local agent, and says below the table who answered.`,
		examples: []example{
			{"warmctl capacity", ""},
			{"warmctl capacity --agent unix:///run/warmd/agent.sock", "what this node knows, with the coordinator down"},
		},
		run: func(c *call) error {
			fleet, who, err := c.fleet()
			if err != nil || c.json {
				return orJSON(c, fleet, err)
			}
			t := newTable("NODE", "DEVICE", "KIND", ">SLOTS", ">FREE", ">BUSY", ">QUAR", "WARM", "MEMORY FREE", ">AGE", "NOTE")
			for _, n := range fleet.Nodes {
				if len(n.Devices) == 0 {
					t.add(n.Node, "", "", "", "", "", "", "", "", seenAge(n), note(n, placement.Device{}))
				}
				for _, d := range n.Devices {
					t.add(n.Node, shortDevice(d.ID), d.Kind, fmt.Sprint(d.Slots), fmt.Sprint(d.Free), fmt.Sprint(d.Busy), fmt.Sprint(d.Quarantined),
						warmText(d), memoryText(d), seenAge(n), note(n, d))
				}
			}
			c.printFleet(t, fleet, who)
			return nil
		},
	}
}

// fleet asks any member for its view.
func (c *call) fleet() (placement.Fleet, answerer, error) {
	return ask(c,
		func(k *coordapi.Client) (placement.Fleet, error) { return k.Fleet(c.ctx) },
		func(k *agentapi.Client) (placement.Fleet, error) { return k.Fleet(c.ctx) })
}

// orJSON ends a command that failed or answers with JSON.
func orJSON(c *call, v any, err error) error {
	if err != nil {
		return err
	}
	return c.printJSON(v)
}

// printFleet prints a table of nodes and, below it, whose view it is.
func (c *call) printFleet(t *table, f placement.Fleet, who answerer) {
	if len(f.Nodes) == 0 {
		fmt.Fprintf(c.Err, "%s %s sees no node; start an agent, or `warmd dev`\n", who.role, f.From)
		return
	}
	t.write(c.Out, "")
	oldest := f.Nodes[0]
	for _, n := range f.Nodes {
		if n.AgeSeconds > oldest.AgeSeconds {
			oldest = n
		}
	}
	fmt.Fprintf(c.Out, "\nanswered by %s %s from its own view, %s; oldest entry: %s, %s old\n",
		who.role, f.From, f.At.UTC().Format("15:04:05 UTC"), oldest.Node, seenAge(oldest))
	if who.instead != "" {
		fmt.Fprintf(c.Out, "the coordinator was asked first: cannot %s\n", who.instead)
	}
}

func seenAge(n placement.NodeView) string {
	return age(time.Duration(n.AgeSeconds * float64(time.Second)))
}

// warmText counts parked workers by runtime: "vllm 2, vllm-next 1".
func warmText(d placement.Device) string {
	var names []string
	for name, n := range d.Warm {
		if n > 0 {
			names = append(names, fmt.Sprintf("%s %d", name, n))
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func memoryText(d placement.Device) string {
	if d.TotalBytes == 0 {
		return ""
	}
	return size(d.FreeBytes) + " of " + size(d.TotalBytes)
}

// note says in words what keeps a device from taking a placement.
func note(n placement.NodeView, d placement.Device) string {
	var s []string
	if !n.Alive {
		s = append(s, "not alive ("+n.Status+")")
	}
	if n.Draining {
		s = append(s, "draining")
	}
	if d.Problem != "" {
		s = append(s, d.Problem)
	}
	if n.Summary {
		s = append(s, "summary")
	}
	return strings.Join(s, "; ")
}
