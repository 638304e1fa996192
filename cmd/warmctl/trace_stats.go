package main

import (
	"fmt"

	"warmd/placement"
)

// traceStats prints how long each phase takes over many starts: what one waterfall
// cannot say is whether it was an unlucky one.
func traceStats(c *call) error {
	f := placement.TraceFilter{Model: c.flags.String("model"), Node: c.flags.String("node"), Tier: placement.Tier(c.flags.String("tier"))}
	if f.Tier != "" && !f.Tier.Valid() {
		return usagef("--tier %q must be serving, sleeping, warm or cold", f.Tier)
	}
	ts, who, err := keptTraces(c)
	if err != nil {
		return err
	}
	stats := placement.Summarize(ts, f)
	err = list(c, stats, "no trace of a start that came to a first token", func() {
		for len(stats) > 0 {
			n := 1
			for n < len(stats) && sameStarts(stats[0], stats[n]) {
				n++
			}
			printStats(c, stats[:n])
			if stats = stats[n:]; len(stats) > 0 {
				fmt.Fprintln(c.Out)
			}
		}
	})
	c.footnotes(who)
	return err
}

func sameStarts(a, b placement.PhaseStat) bool {
	return a.Model == b.Model && a.Node == b.Node && a.Tier == b.Tier
}

// printStats prints the phases of the starts of one model, node and tier.
func printStats(c *call, stats []placement.PhaseStat) {
	fmt.Fprintf(c.Out, "%s on %s, %s: %s\n", printable(stats[0].Model), printable(stats[0].Node), stats[0].Tier, plural(stats[0].Count, "start"))
	t := newTable("PHASE", "PROC", "WHEN", ">N", ">P50", ">P95", ">P99", ">MAX")
	for _, s := range stats {
		when := ""
		if s.Before {
			when = "before"
		}
		t.add(s.Phase, s.Proc, when, fmt.Sprint(s.Count), orZero(seconds(s.P50)), orZero(seconds(s.P95)), orZero(seconds(s.P99)), orZero(seconds(s.Max)))
	}
	t.write(c.Out, "  ")
}

// traceDiff prints what got slower from one start to another.
func traceDiff(c *call, from, to string) error {
	a, _, err := oneTrace(c, from)
	if err != nil {
		return err
	}
	b, who, err := oneTrace(c, to)
	if err != nil {
		return err
	}
	diff := placement.DiffTraces(a, b)
	if c.json {
		return c.printJSON(diff)
	}
	for _, t := range []struct {
		mark string
		placement.Trace
	}{{"A", a}, {"B", b}} {
		fmt.Fprintf(c.Out, "%s  %s  model %s  %s/%s  runtime %s  tier %s  %s\n", t.mark, t.Placement, printable(t.Model), t.Node, shortDevice(t.Device), t.Runtime, t.Tier, c.stamp(t.Begin))
	}
	fmt.Fprintln(c.Out)
	tb := newTable("PHASE", "PROC", "WHEN", ">A", ">B", ">B-A")
	for _, d := range diff {
		when, was, is := "", "", ""
		if d.Before {
			when = "before"
		}
		if d.InA {
			was = orZero(seconds(d.A))
		}
		if d.InB {
			is = orZero(seconds(d.B))
		}
		tb.add(d.Phase, d.Proc, when, was, is, signed(d.Delta))
	}
	tb.write(c.Out, "")
	c.footnotes(who)
	return nil
}

// signed prints a difference of times with its sign.
func signed(s float64) string {
	if s > 0 {
		return "+" + seconds(s)
	}
	return orZero(seconds(s))
}
