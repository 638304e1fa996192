package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"warmd/placement"
)

// Report is what `warmctl bench cold-start` found. Its JSON keeps every run.
type Report struct {
	Model   string            `json:"model"`
	Runtime string            `json:"runtime"`
	Version string            `json:"version,omitempty"`
	Args    []string          `json:"args"`
	Env     map[string]string `json:"env,omitempty"`
	Begun   time.Time         `json:"begun"`
	Host    Host              `json:"host"`
	Pages   string            `json:"page_cache"`
	PagesBy string            `json:"page_cache_how"`
	Python  []Package         `json:"bytecode"`
	Samples []Sample          `json:"samples"`
	Arms    []Summary         `json:"arms"`
	// Warnings is what somebody who quotes the figures must know.
	Warnings []string `json:"warnings"`
}

// Summary is what is quoted of one arm: the samples that were not discarded.
type Summary struct {
	Arm string  `json:"arm"`
	N   int     `json:"n"`
	P50 float64 `json:"p50_seconds"`
	P95 float64 `json:"p95_seconds"`
	Min float64 `json:"min_seconds"`
	Max float64 `json:"max_seconds"`
	// Ratio is the first arm's median over this one's.
	Ratio float64 `json:"ratio"`
	// Median is the run whose total is P50; the table of stages shows it, because
	// medians of stages do not add up.
	Median int `json:"median_run"`
	// StageP50 is the median of each stage over the runs.
	StageP50 map[Stage]float64 `json:"stage_p50_seconds"`
}

// Finish sums the samples up.
func (r *Report) Finish(arms []string) {
	for _, arm := range arms {
		var have []Sample
		for _, s := range r.Samples {
			if s.Arm == arm && !s.Discarded {
				have = append(have, s)
			}
		}
		if len(have) == 0 {
			continue
		}
		slices.SortFunc(have, func(a, b Sample) int { return cmp.Compare(a.Seconds, b.Seconds) })
		total := func(q float64) float64 { return quantile(have, q, func(s Sample) float64 { return s.Seconds }) }
		sum := Summary{Arm: arm, N: len(have), P50: total(.5), P95: total(.95), Min: total(0), Max: total(1), StageP50: map[Stage]float64{}}
		for _, s := range have {
			if s.Seconds == sum.P50 {
				sum.Median = s.Run
			}
		}
		for _, st := range []Stage{APIServer, Executor, Startup, Loading, Inference} {
			sum.StageP50[st] = quantile(have, .5, func(s Sample) float64 { return s.Stages.Seconds[st] })
		}
		r.Arms = append(r.Arms, sum)
	}
	for i := range r.Arms {
		r.Arms[i].Ratio = r.Arms[0].P50 / r.Arms[i].P50
	}
	if busy := r.Host.Busy(); busy != "" {
		r.Warnings = append(r.Warnings, busy)
	}
	r.Warnings = append(r.Warnings, r.notAdding()...)
	if r.Pages == PagesWarm {
		r.Warnings = append(r.Warnings, r.notCached()...)
	}
}

func quantile(have []Sample, q float64, of func(Sample) float64) float64 {
	v := make([]float64, len(have))
	for i, s := range have {
		v[i] = of(s)
	}
	slices.Sort(v)
	return placement.Quantile(v, q)
}

// addUp is how much of a total the stages may leave unaccounted.
const addUp = 0.03

// notAdding names the runs whose stages do not add up, arm by arm.
func (r *Report) notAdding() (out []string) {
	for _, arm := range r.Arms {
		n, worst := 0, Sample{}
		for _, s := range r.Samples {
			if s.Arm != arm.Arm || s.Discarded || math.Abs(s.Stages.Unaccounted) <= addUp*s.Seconds {
				continue
			}
			n++
			if math.Abs(s.Stages.Unaccounted) > math.Abs(worst.Stages.Unaccounted) {
				worst = s
			}
		}
		if n > 0 {
			out = append(out, fmt.Sprintf("stages of %s do not add up to the total within %.0f %% in %d of %d runs: run %d leaves %.2f s of %.2f s unaccounted (not reported: %s)",
				arm.Arm, addUp*100, n, arm.N, worst.Run, worst.Stages.Unaccounted, worst.Seconds, cmp.Or(strings.Join(worst.Stages.Missing, ", "), "nothing")))
		}
	}
	return out
}

// AddsUp is false when the stages of some run leave more than 3 % unaccounted.
func (r *Report) AddsUp() bool { return len(r.notAdding()) == 0 }

func (r *Report) notCached() (out []string) {
	for _, s := range r.Samples {
		if !s.Discarded && s.Cached.Model >= 0 && s.Cached.Model < 0.99 {
			return []string{fmt.Sprintf("the page cache held only %.0f %% of the model before run %d of %s, although it had just been read: this machine has too little memory", s.Cached.Model*100, s.Run, s.Arm)}
		}
	}
	return nil
}

// median is the run of an arm that stands for it.
func (r *Report) median(s Summary) Sample {
	for _, x := range r.Samples {
		if x.Arm == s.Arm && x.Run == s.Median && !x.Discarded {
			return x
		}
	}
	return Sample{}
}

// Grid is a table to print, however it is printed. Columns but the first hold numbers.
type Grid struct {
	Title string
	Head  []string
	Rows  [][]string
}

// Grids are the report's tables: the arms, then the stages of the first arm against
// each other.
func (r *Report) Grids() []Grid {
	arms := Grid{Title: "Request sent to first streamed token", Head: []string{"ARM", "N", "P50", "P95", "MIN", "MAX", "RATIO"}}
	for _, s := range r.Arms {
		arms.Rows = append(arms.Rows, []string{s.Arm, fmt.Sprint(s.N), secs(s.P50), secs(s.P95), secs(s.Min), secs(s.Max), fmt.Sprintf("%.1fx", s.Ratio)})
	}
	out := []Grid{arms}
	for _, s := range r.Arms[min(1, len(r.Arms)):] {
		out = append(out, r.compare(r.Arms[0], s))
	}
	if len(r.Arms) == 1 {
		out = append(out, r.single(r.Arms[0]))
	}
	return out
}

func (r *Report) compare(base, other Summary) Grid {
	a, b := r.median(base), r.median(other)
	g := Grid{
		Title: fmt.Sprintf("Stages of %s against %s, the runs at the median (%d and %d)", base.Arm, other.Arm, base.Median, other.Median),
		Head:  []string{"STAGE", strings.ToUpper(base.Arm), strings.ToUpper(other.Arm), "DELTA", "RATIO", "PUBLISHED", "RATIO THERE"},
	}
	for _, row := range rows {
		was, is := row.of(a), row.of(b)
		cells := []string{row.name, secs(was), secs(is), fmt.Sprintf("%+.2f s", is-was), ratio(was, is), "", ""}
		if row.name == rowUnaccounted {
			cells[4] = ""
		}
		if p, ok := published[row.name]; ok {
			cells[5], cells[6] = fmt.Sprintf("%.2f -> %.2f s", p[0], p[1]), ratio(p[0], p[1])
		}
		g.Rows = append(g.Rows, cells)
	}
	return g
}

func (r *Report) single(only Summary) Grid {
	g := Grid{Title: fmt.Sprintf("Stages of %s, the run at the median (%d)", only.Arm, only.Median), Head: []string{"STAGE", strings.ToUpper(only.Arm)}}
	for _, row := range rows {
		g.Rows = append(g.Rows, []string{row.name, secs(row.of(r.median(only)))})
	}
	return g
}

// ratio is how many times shorter a stage got; what takes less than 5 ms is gone.
func ratio(was, is float64) string {
	switch {
	case is < 0.005 && was < 0.005:
		return ""
	case is < 0.005:
		return "gone"
	}
	return fmt.Sprintf("%.2fx", was/is)
}

func secs(s float64) string { return fmt.Sprintf("%.2f s", s) }

// About are lines that belong under the tables: without them the figures mean nothing.
func (r *Report) About() []string {
	lines := []string{
		fmt.Sprintf("model %s, runtime %s, flags %s", r.Model, strings.TrimSpace(r.Runtime+" "+r.Version), cmp.Or(strings.Join(r.Args, " "), "none")),
		fmt.Sprintf("%s, %d cores, %.0f GiB, Linux %s; load %.1f before, %.1f to %.1f during the runs", cmp.Or(r.Host.CPU, "unknown CPU"), r.Host.CPUs,
			float64(r.Host.Memory)/(1<<30), r.Host.Kernel, r.Host.Load1, r.load(slices.Min[[]float64]), r.load(slices.Max[[]float64])),
		fmt.Sprintf("page cache %s: %s", r.Pages, r.PagesBy),
	}
	if len(r.Samples) > 0 {
		lines = append(lines, fmt.Sprintf("every arm answered %q; %s", r.Samples[0].Text, r.configs()))
	}
	return lines
}

// configs says what is known about the engines' own configurations; different ones
// have ended the run.
func (r *Report) configs() string {
	var silent []string
	for _, s := range r.Samples {
		if s.Config == "" && !slices.Contains(silent, s.Arm) {
			silent = append(silent, s.Arm)
		}
	}
	if len(silent) > 0 {
		return "the engine of " + strings.Join(silent, ", ") + " did not log its configuration, so only the flags given are known to be the same"
	}
	return "every engine logged the same configuration"
}

func (r *Report) load(pick func([]float64) float64) float64 {
	var v []float64
	for _, s := range r.Samples {
		v = append(v, s.Load1, s.Load1After)
	}
	if len(v) == 0 {
		return 0
	}
	return pick(v)
}

// ReadReport reads what an earlier run wrote as JSON.
func ReadReport(file string) (*Report, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	r := &Report{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("read report %s: %w", file, err)
	}
	if len(r.Arms) == 0 {
		return nil, fmt.Errorf("read report %s: it holds no arms: it is not of `warmctl bench cold-start -o json`", file)
	}
	return r, nil
}
