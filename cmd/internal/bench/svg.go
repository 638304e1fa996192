package bench

import (
	"fmt"
	"html"
	"strings"
)

// The picture: one bar for each arm, cut into its pieces in the order of time, all on
// one scale; below it the short ones again on a scale of their own, because what is
// 25 times shorter is a line on the first. Text is text, nothing moves and nothing is
// loaded; colours follow the reader's light or dark.
const (
	svgWidth  = 960
	svgLeft   = 90  // arms' names
	svgRight  = 150 // totals
	svgBar    = 30
	svgRow    = 46
	svgMargin = 20
)

var stageNames = []struct {
	stage Stage
	class string
	name  string
}{
	{APIServer, "api", "API server overhead"},
	{Executor, "exe", "executor init & config"},
	{Startup, "sta", "worker startup / attach"},
	{Loading, "loa", "model loading"},
	{Inference, "inf", "inference"},
}

const svgStyle = `
    .bg { fill: #ffffff; }
    text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 13px; fill: #1f2328; }
    .title { font-size: 17px; font-weight: 600; }
    .quiet { fill: #59636e; font-size: 12px; }
    .in { fill: #ffffff; font-size: 12px; }
    .axis { stroke: #d1d9e0; stroke-width: 1; }
    .api { fill: #2f6fb0; } .exe { fill: #b35900; } .sta { fill: #8250a0; } .loa { fill: #1a7f4b; } .inf { fill: #b8324f; }
    .una { fill: #8c959f; }
    @media (prefers-color-scheme: dark) {
      .bg { fill: #0d1117; }
      text { fill: #e6edf3; }
      .quiet { fill: #9198a1; }
      .in { fill: #0d1117; }
      .axis { stroke: #3d444d; }
      .api { fill: #6cb0f5; } .exe { fill: #f0a35e; } .sta { fill: #c79be8; } .loa { fill: #5fce92; } .inf { fill: #ff8fa3; }
      .una { fill: #6e7681; }
    }
`

// SVG draws the stages of the runs at the median.
func (r *Report) SVG() string {
	var b strings.Builder
	y := svgMargin + 17
	text := func(class string, x, y int, anchor, s string) {
		fmt.Fprintf(&b, `  <text class="%s" x="%d" y="%d" text-anchor="%s">%s</text>`+"\n", class, x, y, anchor, html.EscapeString(s))
	}
	title := "Cold start by stage: request sent to first streamed token"
	text("title", svgMargin, y, "start", title)
	y += 22
	text("quiet", svgMargin, y, "start", r.caption())
	y += 20
	x := svgMargin
	for _, s := range stageNames {
		fmt.Fprintf(&b, `  <rect class="%s" x="%d" y="%d" width="12" height="12" rx="2"/>`+"\n", s.class, x, y-2)
		text("quiet", x+17, y+9, "start", s.name)
		x += 34 + 7*len(s.name)
	}
	fmt.Fprintf(&b, `  <rect class="una" x="%d" y="%d" width="12" height="12" rx="2"/>`+"\n", x, y-2)
	text("quiet", x+17, y+9, "start", "unaccounted")
	y += 34

	longest := 0.0
	for _, s := range r.Arms {
		longest = max(longest, s.P50)
	}
	for _, s := range r.Arms {
		r.bar(&b, text, y, s, longest)
		y += svgRow
	}
	y = axis(&b, text, y-8, longest)
	for _, s := range r.Arms {
		if s.P50 > longest/3 {
			continue
		}
		y += 26
		text("quiet", svgMargin, y, "start", fmt.Sprintf("%s again, %.0f times larger", s.Arm, longest/s.P50))
		y += 12
		r.bar(&b, text, y, s, s.P50)
		y = axis(&b, text, y+svgRow-8, s.P50)
	}
	for _, w := range r.Warnings {
		y += 18
		text("quiet", svgMargin, y, "start", "note: "+w)
	}
	y += svgMargin
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-labelledby="t d">`+"\n", svgWidth, y, svgWidth, y)
	return head + fmt.Sprintf("  <title id=\"t\">%s</title>\n  <desc id=\"d\">%s</desc>\n  <style>%s  </style>\n", html.EscapeString(title), html.EscapeString(r.describe()), svgStyle) +
		`  <rect class="bg" width="100%" height="100%"/>` + "\n" +
		b.String() + "</svg>\n"
}

func (r *Report) caption() string {
	n := 0
	for _, s := range r.Arms {
		n = max(n, s.N)
	}
	return fmt.Sprintf("%s, %s, %d cores, page cache %s, %d runs, the run at the median of each arm",
		r.Model[strings.LastIndexByte(r.Model, '/')+1:], strings.TrimSpace(r.Runtime), r.Host.CPUs, r.Pages, n)
}

// describe says the picture in words.
func (r *Report) describe() string {
	var parts []string
	for _, s := range r.Arms {
		parts = append(parts, fmt.Sprintf("%s: %.2f s", s.Arm, s.P50))
	}
	return strings.Join(parts, ", ")
}

// bar draws one arm. The pieces lie where they happened; what is between them is
// unaccounted.
func (r *Report) bar(b *strings.Builder, text func(string, int, int, string, string), y int, s Summary, full float64) {
	run := r.median(s)
	px := float64(svgWidth-svgLeft-svgRight) / full
	at := func(t float64) float64 { return svgLeft + min(max(t, 0), full)*px }
	text("", svgLeft-12, y+svgBar/2+5, "end", s.Arm)
	fmt.Fprintf(b, `  <rect class="una" x="%.1f" y="%d" width="%.1f" height="%d"/>`+"\n", at(0), y, at(run.Seconds)-at(0), svgBar)
	for _, p := range run.Stages.Pieces {
		x, w := at(p.Start), at(p.Start+p.Seconds)-at(p.Start)
		class := ""
		for _, n := range stageNames {
			if n.stage == p.Stage {
				class = n.class
			}
		}
		fmt.Fprintf(b, `  <rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d"><title>%s to %s: %.3f s</title></rect>`+"\n", class, x, y, w, svgBar, p.From, p.To, p.Seconds)
		if w >= 44 {
			text("in", int(x+w/2), y+svgBar/2+4, "middle", secs(p.Seconds))
		}
	}
	label := secs(run.Seconds)
	if s.Ratio > 1.05 {
		label += fmt.Sprintf(", %.1fx faster", s.Ratio)
	}
	text("", int(at(run.Seconds))+10, y+svgBar/2+5, "start", label)
}

// axis draws a scale of about six steps under bars and returns the y below it.
func axis(b *strings.Builder, text func(string, int, int, string, string), y int, full float64) int {
	step := 0.01
	for _, next := range []float64{0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000} {
		if full/step <= 8 {
			break
		}
		step = next
	}
	px := float64(svgWidth-svgLeft-svgRight) / full
	fmt.Fprintf(b, `  <line class="axis" x1="%d" y1="%d" x2="%d" y2="%d"/>`+"\n", svgLeft, y, svgWidth-svgRight, y)
	for i := 0; float64(i)*step <= full*1.0001; i++ {
		t := float64(i) * step
		x := svgLeft + t*px
		fmt.Fprintf(b, `  <line class="axis" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>`+"\n", x, y, x, y+5)
		text("quiet", int(x), y+18, "middle", fmt.Sprintf("%.4g s", t))
	}
	return y + 22
}
