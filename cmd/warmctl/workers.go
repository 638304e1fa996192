package main

import (
	"fmt"
	"sort"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
)

func workersCommand() command {
	return command{
		name: "workers", short: "list parked and serving workers",
		long: `A worker is an engine process and its API server; a parked one is warm and serves
at most one placement in its life. Without a coordinator the local agent answers
for its node.`,
		examples: []example{
			{"warmctl workers", ""},
			{"warmctl workers -o json | jq '[.[] | select(.state == \"warm\")] | length'", "how many are parked?"},
		},
		run: func(c *call) error {
			ws, who, err := c.workers()
			if err != nil {
				return err
			}
			err = list(c, ws, "no workers; is a runtime installed? warmctl nodes, warmd runtime ls", func() {
				t := newTable("ID", "NODE", "DEVICE", "RUNTIME", ">GEN", "STATE", "PLACEMENT", ">ENGINE PID", ">API PID", ">MEMORY", ">AGE", "PROBLEM")
				for _, w := range ws {
					t.add(w.ID, w.Node, shortDevice(w.Device), w.Runtime, fmt.Sprint(w.Generation), w.State, w.Placement,
						number(w.EnginePID), number(w.APIPID), rss(w.RSSBytes), c.since(w.Since), w.Problem)
				}
				t.write(c.Out, "")
			})
			c.footnotes(who)
			return err
		},
	}
}

func (c *call) workers() ([]agentapi.Worker, answerer, error) {
	ws, who, err := ask(c,
		func(k *coordapi.Client) ([]agentapi.Worker, error) {
			return get[[]agentapi.Worker](c.ctx, c, k.Conn, "/v1/workers")
		},
		func(k *agentapi.Client) ([]agentapi.Worker, error) { return k.Workers(c.ctx) })
	sort.SliceStable(ws, func(i, j int) bool {
		a, b := ws[i], ws[j]
		if a.Node != b.Node {
			return a.Node < b.Node
		}
		if a.Device != b.Device {
			return a.Device < b.Device
		}
		return a.ID < b.ID
	})
	return ws, who, err
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func rss(n int64) string {
	if n == 0 {
		return ""
	}
	return size(n)
}
