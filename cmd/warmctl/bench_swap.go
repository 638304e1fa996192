package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"warmd/cmd/internal/bench"
	"warmd/placement"
)

// benchSwap measures how long one model takes to follow another, and what is left
// over afterwards.
func benchSwap(c *call) error {
	models := []string{}
	for _, m := range c.args[1:] {
		abs, err := filepath.Abs(m)
		if err != nil {
			return usagef("find model folder: %v", err)
		}
		if slices.ContainsFunc(models, func(o string) bool { return filepath.Base(o) == filepath.Base(abs) }) {
			return usagef("bench swap: two models are called %s: they are told apart by the last part of their path", filepath.Base(abs))
		}
		models = append(models, abs)
	}
	swaps := c.flags.Int("swaps")
	switch {
	case len(models) < 2:
		return usagef("bench swap needs MODEL MODEL...: two or more")
	case swaps < 1 || swaps > 100000:
		return usagef("--swaps %d must be between 1 and 100000", swaps)
	case c.format == "svg":
		return usagef("-o svg is a picture of stages: bench cold-start draws it")
	}
	env, err := envPairs(c.flags.StringSlice("env"))
	if err != nil {
		return err
	}
	k, _, err := c.coordinator()
	if err != nil {
		return err
	}
	a, _, err := c.agent()
	if err != nil {
		return err
	}
	host := bench.ThisHost()
	if busy := host.Busy(); busy != "" {
		fmt.Fprintf(c.Err, "warning: %s\n", busy)
	}
	rt := c.flags.String("runtime")
	if rt == "" {
		if rt, err = onlyRuntime(c); err != nil {
			return err
		}
	}
	rep, err := bench.Swaps{
		Coordinator: k, Agent: a, Models: models, Swaps: swaps,
		Request: placement.Request{Runtime: rt, Args: c.flags.StringSlice("arg"), Env: env, Start: placement.StartAuto},
		Report: func(s bench.Swap) {
			fmt.Fprintf(c.Err, "  swap %d  %s -> %s  %s  %.2f s  (release %.2f s)  load %.1f\n", s.N, s.From, s.To, s.Tier, s.Seconds, s.Release, s.Load1)
		},
	}.Run(c.ctx)
	if err != nil {
		return err
	}
	if c.json {
		err = c.printJSON(rep)
	} else {
		c.printGrids(rep.Grids(), rep.About(), rep.Warnings)
	}
	if err == nil && len(rep.Leaks) > 0 {
		return placement.Errorf(placement.CodeInternal, "check what is left after %d swaps: %s", len(rep.Swaps), strings.Join(rep.Leaks, "; ")).
			WithHint("-o json names shared memory and sockets; warmctl events says what became of each worker")
	}
	return err
}

// onlyRuntime is the runtime of the local agent when there is one only.
func onlyRuntime(c *call) (string, error) {
	a, _, err := c.agent()
	if err != nil {
		return "", err
	}
	n, err := a.Node(c.ctx)
	if err != nil {
		return "", err
	}
	name := ""
	for _, r := range n.Capacity.Runtimes {
		if name != "" {
			return "", usagef("--runtime is needed: %s has more than one", n.Capacity.Node)
		}
		name = r.Name
	}
	if name == "" {
		return "", usagef("--runtime is needed: %s has none", n.Capacity.Node)
	}
	return name, nil
}
