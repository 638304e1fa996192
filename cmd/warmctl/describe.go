package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func describeCommand() command {
	return command{
		name: "describe", args: "ID|NODE", min: 1, max: 1, complete: "placements+nodes",
		short: "say all there is to know about a placement or a node",
		long: `Looks for a placement (id, unique id prefix, or served name), then for a node of
that name.`,
		examples: []example{
			{"warmctl describe p-4f2a", "where it runs, how warm it started, what was asked for"},
			{"warmctl describe gpu-host-1", "devices, runtimes and placements of a node"},
		},
		run: func(c *call) error {
			p, who, err := c.placement(c.args[0])
			if err == nil {
				if c.json {
					return c.printJSON(p)
				}
				c.describePlacement(p)
				c.footnotes(who)
				return nil
			}
			if exitCode(err) != exitNotFound {
				return err
			}
			fleet, who, err := c.fleet()
			if err != nil {
				return err
			}
			for _, n := range fleet.Nodes {
				if n.Node != c.args[0] {
					continue
				}
				if c.json {
					return c.printJSON(n)
				}
				c.describeNode(n)
				c.footnotes(who)
				return nil
			}
			return placement.Errorf(placement.CodeNotFound, "no placement and no node %q", c.args[0]).
				WithHint("warmctl ps --all lists placements, warmctl nodes lists nodes")
		},
	}
}

// placement finds one placement.
func (c *call) placement(key string) (placement.Placement, answerer, error) {
	return ask(c,
		func(k *coordapi.Client) (placement.Placement, error) { return k.Placement(c.ctx, key) },
		func(k *agentapi.Client) (placement.Placement, error) { return resolveOnAgent(c, k, key) })
}

func (c *call) describePlacement(p placement.Placement) {
	r := p.Request
	fmt.Fprintf(c.Out, "placement %s\n", p.ID)
	start := string(p.Tier)
	if p.StartSeconds > 0 {
		start += ", first token after " + seconds(p.StartSeconds)
	}
	device := p.Device
	if p.Worker != "" {
		device += ", worker " + p.Worker
	}
	traceID := p.TraceID
	if traceID != "" {
		traceID += " (warmctl trace " + p.ID + ")"
	}
	journal := ""
	if p.Node != "" { // the agent's lines and the engine's, on that node
		journal = "journalctl WARMD_PLACEMENT=" + p.ID
	}
	fields(c.Out, "  ",
		"state", stateText(p), "reason", p.Reason, "try", p.Hint,
		"name", r.ServedName(), "model", r.Model, "endpoint", p.Endpoint,
		"node", p.Node, "device", device, "runtime", p.Runtime, "start", start,
		"attempt", fmt.Sprintf("%d of %d", p.Attempt, placement.MaxAttempts),
		"created", c.stamp(p.Created), "updated", c.stamp(p.Updated), "trace", traceID,
		"journal", journal)
	fmt.Fprintln(c.Out, "asked for")
	memory := ""
	if r.MemoryBytes > 0 {
		memory = size(r.MemoryBytes)
	}
	fields(c.Out, "  ",
		"request id", r.ID, "start", string(r.Normalize().Start), "runtime", r.Runtime, "node", r.Node, "memory", memory,
		"timeout", r.Timeout().Round(time.Millisecond).String(), "args", strings.Join(r.Args, " "), "env", envText(r.Env))
}

// envText prints an environment without its secrets: describe ends up in tickets.
func envText(env map[string]string) string {
	var out []string
	for k, v := range env {
		if slices.ContainsFunc([]string{"TOKEN", "SECRET", "PASSWORD", "KEY"}, func(s string) bool { return strings.Contains(strings.ToUpper(k), s) }) {
			v = "***"
		}
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (c *call) describeNode(n placement.NodeView) {
	fmt.Fprintf(c.Out, "node %s\n", n.Node)
	role := ""
	if n.Coordinator {
		role = "also a coordinator"
	}
	fields(c.Out, "  ",
		"status", nodeStatus(n), "heard", seenAge(n)+" ago", "address", n.Addr, "version", n.Version, "role", role,
		"started", c.stamp(epochTime(n.Epoch)), "generation", fmt.Sprint(n.Generation))
	fmt.Fprintln(c.Out, "devices")
	t := newTable("ID", "KIND", "NAME", ">SLOTS", ">FREE", ">BUSY", ">QUAR", "WARM", "MEMORY FREE", "PLACEMENTS", "PROBLEM")
	for _, d := range n.Devices {
		t.add(d.ID, d.Kind, d.Name, fmt.Sprint(d.Slots), fmt.Sprint(d.Free), fmt.Sprint(d.Busy), fmt.Sprint(d.Quarantined), warmText(d), memoryText(d),
			strings.Join(d.Placements, " "), d.Problem)
	}
	t.write(c.Out, "  ")
	if len(n.Runtimes) == 0 {
		fmt.Fprintln(c.Out, "no runtime installed; `warmd runtime add NAME` on that node makes one")
		return
	}
	fmt.Fprintln(c.Out, "runtimes")
	t = newTable("NAME", "KIND", "ENGINE", "DEVICE", "ZYGOTE", "PROFILE", "PROBLEM")
	for _, r := range n.Runtimes {
		t.add(r.Name, r.Kind, strings.TrimSpace(r.Engine+" "+r.Version), r.Device, r.Zygote, r.ProfileKey[:min(12, len(r.ProfileKey))], r.Problem)
	}
	t.write(c.Out, "  ")
}

func epochTime(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// isNotFound reports whether the server knows no such thing.
func isNotFound(err error) bool {
	e, ok := errors.AsType[*placement.Error](err)
	return ok && e.Code == placement.CodeNotFound
}
