package bench

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"warmd/placement"
)

// SwapReport is what `warmctl bench swap` found. Its JSON keeps every swap.
type SwapReport struct {
	Models  []string  `json:"models"`
	Runtime string    `json:"runtime"`
	Args    []string  `json:"args"`
	Node    string    `json:"node"`
	Begun   time.Time `json:"begun"`
	Host    Host      `json:"host"`
	Swaps   []Swap    `json:"swaps"`
	Pool    Pool      `json:"pool"`
	Before  Footprint `json:"before"`
	After   Footprint `json:"after"`
	// Leaks is what was left over: it must be empty.
	Leaks    []string `json:"leaks"`
	Warnings []string `json:"warnings"`
}

// Pool is how the parked workers did.
type Pool struct {
	Warm   int     `json:"warm"`   // a parked worker or one forked at once
	Forked int     `json:"forked"` // those of them that waited for the fork
	Cold   int     `json:"cold"`
	P50    float64 `json:"fork_wait_p50_seconds"`
	Max    float64 `json:"fork_wait_max_seconds"`
}

func (r *SwapReport) finish() {
	waits := []float64{}
	for _, s := range r.Swaps {
		switch {
		case s.Tier == string(placement.TierCold):
			r.Pool.Cold++
		default:
			r.Pool.Warm++
		}
		if s.Forked > 0 {
			r.Pool.Forked++
			waits = append(waits, s.Forked)
		}
	}
	if len(waits) > 0 {
		slices.Sort(waits)
		r.Pool.P50, r.Pool.Max = placement.Quantile(waits, .5), waits[len(waits)-1]
	}
	if r.Leaks = leaks(r.Before, r.After); r.Leaks == nil {
		r.Leaks = []string{}
	}
	if busy := r.Host.Busy(); busy != "" {
		r.Warnings = append(r.Warnings, busy)
	}
}

// Grids are the report's tables.
func (r *SwapReport) Grids() []Grid {
	times := Grid{Title: "Release sent to the next model's first token", Head: []string{"TO", "N", "P50", "P95", "MAX", "RELEASE P50", "ACCEPT P50", "TOKEN P50"}}
	row := func(name string, have []Swap) {
		q := func(share float64, of func(Swap) float64) string {
			v := []float64{}
			for _, s := range have {
				v = append(v, of(s))
			}
			slices.Sort(v)
			return secs(placement.Quantile(v, share))
		}
		whole := func(s Swap) float64 { return s.Seconds }
		if len(have) > 0 {
			times.Rows = append(times.Rows, []string{name, fmt.Sprint(len(have)), q(.5, whole), q(.95, whole), q(1, whole),
				q(.5, func(s Swap) float64 { return s.Release }), q(.5, func(s Swap) float64 { return s.Accept }), q(.5, func(s Swap) float64 { return s.Token })})
		}
	}
	for _, m := range r.Models {
		var have []Swap
		for _, s := range r.Swaps {
			if s.To == filepath.Base(m) {
				have = append(have, s)
			}
		}
		row(filepath.Base(m), have)
	}
	row("all", r.Swaps)
	pool := Grid{Title: "The pool", Head: []string{"WARM", "OF THEM FORKED", "COLD", "FORK WAIT P50", "FORK WAIT MAX"},
		Rows: [][]string{{fmt.Sprint(r.Pool.Warm), fmt.Sprint(r.Pool.Forked), fmt.Sprint(r.Pool.Cold), secs(r.Pool.P50), secs(r.Pool.Max)}}}
	return []Grid{times, pool, r.footprints()}
}

func (r *SwapReport) footprints() Grid {
	g := Grid{Title: fmt.Sprintf("What is held, before and after %d swaps", len(r.Swaps)), Head: []string{"WHAT", "BEFORE", "AFTER", "GROWTH", "LIMIT"}}
	count := func(what string, was, is int) {
		g.Rows = append(g.Rows, []string{what, fmt.Sprint(was), fmt.Sprint(is), fmt.Sprintf("%+d", is-was), "0"})
	}
	size := func(what string, was, is int64, limit string) {
		g.Rows = append(g.Rows, []string{what, mib(was), mib(is), fmt.Sprintf("%+.1f %%", growth(was, is)*100), limit})
	}
	count("processes", r.Before.Processes, r.After.Processes)
	count("open files, agent", r.Before.AgentFDs, r.After.AgentFDs)
	count("open files, zygotes", r.Before.ZygoteFDs, r.After.ZygoteFDs)
	count("shared memory segments", len(r.Before.Shared), len(r.After.Shared))
	count("socket files", len(r.Before.Sockets), len(r.After.Sockets))
	size("resident, agent", r.Before.AgentRSS, r.After.AgentRSS, "5 %")
	size("resident, zygotes", r.Before.ZygoteRSS, r.After.ZygoteRSS, "5 %")
	size("device memory free", r.Before.DeviceFree, r.After.DeviceFree, "")
	return g
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// About are lines that belong under the tables.
func (r *SwapReport) About() []string {
	return []string{
		fmt.Sprintf("node %s, runtime %s, flags %s; every release was answered when the slot's processes were gone and its memory proven free", r.Node, r.Runtime, cmp.Or(strings.Join(r.Args, " "), "none")),
		fmt.Sprintf("%s, %d cores, %.0f GiB, Linux %s; load %.1f before", cmp.Or(r.Host.CPU, "unknown CPU"), r.Host.CPUs, float64(r.Host.Memory)/(1<<30), r.Host.Kernel, r.Host.Load1),
	}
}
