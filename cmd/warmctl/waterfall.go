package main

import (
	"fmt"
	"math"
	"sort"
	"strings"
	"unicode/utf8"

	"warmd/placement"
)

// waterfall draws the phases of a start for a terminal of a width. The two parts
// have a scale of their own: before the request bars show durations only, because
// a worker may have been parked for days; after it they stand where they happened.
func waterfall(t placement.Trace, width int, ascii bool) string {
	var b strings.Builder
	before, after := splitPhases(t.Phases)
	total := t.Total
	if total <= 0 {
		for _, p := range after {
			total = max(total, p.Start+p.Duration)
		}
	}
	fmt.Fprintf(&b, "placement %s  model %s  %s/%s  runtime %s  tier %s\n", t.Placement, t.Model, t.Node, shortDevice(t.Device), t.Runtime, t.Tier)
	if t.TraceID != "" {
		fmt.Fprintf(&b, "trace %s\n", t.TraceID)
	}
	switch {
	case t.Failed != "":
		fmt.Fprintf(&b, "failed: %s\n", t.Failed)
	case t.Total > 0:
		fmt.Fprintf(&b, "request to first token: %s\n", seconds(t.Total))
	default:
		b.WriteString("the start goes on\n")
	}
	s := style{bar: "█", shade: "░", axis: "│", rule: "─"}
	if ascii {
		s = style{bar: "#", shade: "-", axis: "|", rule: "-"}
	}
	l := layoutFor(t.Phases, width)
	if len(before) > 0 {
		longest := 0.0
		for _, p := range before {
			longest = max(longest, p.Duration)
		}
		fmt.Fprintf(&b, "\n%s\n", l.rule(s, "done before the request: "+seconds(placement.Covered(before))))
		for _, p := range before {
			cells := 0
			if longest > 0 {
				cells = clampCells(p.Duration/longest*float64(l.bars), l.bars)
			}
			l.row(&b, p, strings.Repeat(s.shade, cells), s)
		}
	}
	if len(after) > 0 {
		fmt.Fprintf(&b, "\n%s\n", l.rule(s, "waited for: "+orZero(seconds(total))))
		for _, p := range after {
			l.row(&b, p, barAt(max(p.Start, 0), p.Start+p.Duration, total, l.bars, s.bar), s)
		}
	}
	if len(t.Phases) == 0 {
		b.WriteString("no phases were recorded\n")
	} else if t.Total > 0 {
		if rest := t.Total - placement.Covered(after); rest > 0.01*t.Total {
			fmt.Fprintf(&b, "\nin no phase: %s\n", seconds(rest))
		}
	}
	return printableLines(b.String())
}

type style struct{ bar, shade, axis, rule string }

// layout is the width of each column: name, process, start, time, bars.
type layout struct {
	name, proc, bars, width int
	depth                   map[string]int // by span id
}

const (
	numberWidth = 9 // "+120.45 s"
	minBars     = 8
	maxBars     = 80
	minName     = 14 // four levels of indent and the beginning of the name
	rowGaps     = 8  // two spaces between columns
)

// layoutFor shares the width out: bars get what the text leaves, long names are
// cut when the terminal is narrow.
func layoutFor(phases []placement.Phase, width int) layout {
	l := layout{width: width, name: len("PHASE"), proc: len("PROC"), depth: depths(phases)}
	for _, p := range phases {
		l.name = max(l.name, utf8.RuneCountInString(p.Name)+2*l.depth[p.SpanID])
		l.proc = max(l.proc, utf8.RuneCountInString(p.Proc))
	}
	text := l.proc + 2*numberWidth + rowGaps + 1
	if over := l.name + text + minBars - width; over > 0 {
		l.name = max(minName, l.name-over)
	}
	if l.bars = min(maxBars, width-text-l.name); l.bars < minBars {
		l.bars = 0 // too narrow to compare anything by eye: the numbers remain
	}
	return l
}

func (l layout) rule(s style, title string) string {
	n := min(l.width, l.name+l.proc+2*numberWidth+rowGaps+1+l.bars)
	head := strings.Repeat(s.rule, 2) + " " + title + " "
	return head + strings.Repeat(s.rule, max(0, n-utf8.RuneCountInString(head)))
}

func (l layout) row(b *strings.Builder, p placement.Phase, bar string, s style) {
	name := strings.Repeat("  ", l.depth[p.SpanID]) + p.Name
	if utf8.RuneCountInString(name) > l.name {
		name = clip(name, l.name-1) + "~"
	}
	start := orZero(seconds(p.Start))
	if p.Start >= 0 {
		start = "+" + start
	}
	line := fmt.Sprintf("%s  %s  %*s  %*s  %s%s", padTo(name, l.name), padTo(p.Proc, l.proc), numberWidth, start, numberWidth, orZero(seconds(p.Duration)), s.axis, bar)
	if l.bars == 0 {
		line = strings.TrimSuffix(line, s.axis)
	}
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}

func padTo(s string, n int) string {
	return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s)))
}

// barAt is a bar from one moment to another on an axis of a length in seconds.
func barAt(from, to, total float64, cells int, mark string) string {
	if total <= 0 || cells == 0 {
		return ""
	}
	at := max(0, min(cells-1, int(from/total*float64(cells))))
	n := clampCells((to-from)/total*float64(cells), cells-at)
	return strings.Repeat(" ", at) + strings.Repeat(mark, n)
}

// clampCells rounds a length to cells; even the shortest phase is seen.
func clampCells(f float64, most int) int {
	return min(most, max(1, int(math.Round(f))))
}

// splitPhases sorts phases by their start and splits them at the request. Zero is
// when the agent received it; what the client and the coordinator did just before
// was waited for all the same.
func splitPhases(all []placement.Phase) (before, after []placement.Phase) {
	sorted := append([]placement.Phase(nil), all...)
	sort.SliceStable(sorted, func(i, j int) bool {
		if sorted[i].Start != sorted[j].Start {
			return sorted[i].Start < sorted[j].Start
		}
		return sorted[i].Duration > sorted[j].Duration
	})
	for _, p := range sorted {
		asked := p.Proc == "client" || p.Proc == "coordinator"
		if !asked && (p.Before || p.Start < 0 && p.Start+p.Duration <= 0) {
			before = append(before, p)
		} else {
			after = append(after, p)
		}
	}
	return before, after
}

// depths counts the known parents of each span, at most four: deeper nesting
// would push the bars off the screen, and a cycle would never end.
func depths(phases []placement.Phase) map[string]int {
	parent := map[string]string{}
	for _, p := range phases {
		if p.SpanID != "" {
			parent[p.SpanID] = p.Parent
		}
	}
	out := map[string]int{}
	for id := range parent {
		n := 0
		for up := parent[id]; n < 4; n++ {
			next, known := parent[up]
			if !known || up == "" {
				break
			}
			up = next
		}
		out[id] = n
	}
	return out
}

func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}
