package main

import (
	"fmt"
	"slices"
	"strings"

	"warmd/placement"
)

func nodesCommand() command {
	return command{
		name: "nodes", short: "list the nodes of the fleet",
		long: `One line per node, from the view of the member that answers (see warmctl capacity).
STATUS is what the fleet thinks of the node: alive, suspect, left or failed, and
draining when it takes no new placements.`,
		examples: []example{
			{"warmctl nodes", ""},
			{"warmctl nodes -o json | jq -r '.nodes[] | select(.alive | not) | .node'", "who is gone?"},
		},
		run: func(c *call) error {
			fleet, who, err := c.fleet()
			if err != nil || c.json {
				return orJSON(c, fleet, err)
			}
			t := newTable("NODE", "STATUS", ">DEVICES", ">SLOTS", ">FREE", ">BUSY", ">WARM", "RUNTIMES", "VERSION", "ADDRESS", ">AGE")
			for _, n := range fleet.Nodes {
				slots, free, busy, _, warm := n.Totals()
				t.add(n.Node, nodeStatus(n), fmt.Sprint(len(n.Devices)), fmt.Sprint(slots), fmt.Sprint(free), fmt.Sprint(busy), fmt.Sprint(warm),
					runtimeText(n.Runtimes), n.Version, n.Addr, seenAge(n))
			}
			c.printFleet(t, fleet, who)
			return nil
		},
	}
}

func nodeStatus(n placement.NodeView) string {
	status := n.Status
	if status == "" {
		status = "failed"
		if n.Alive {
			status = "alive"
		}
	}
	if n.Draining {
		status += ",draining"
	}
	return status
}

// runtimeText names the runtimes; one that cannot start warm says so.
func runtimeText(rts []placement.Runtime) string {
	var names []string
	for _, r := range rts {
		name := r.Name
		switch {
		case r.Problem != "":
			name += " (broken)"
		case r.Zygote != "" && r.Zygote != "up":
			name += " (zygote " + r.Zygote + ")"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
