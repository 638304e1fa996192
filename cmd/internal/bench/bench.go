// Package bench measures starts of a model side by side, and swaps of one model for
// another. It holds the measurement and what is printed of it; warmctl has the flags.
//
// Every arm of a comparison is measured the same way: from the moment that the
// request for the start is sent to the moment that the first streamed token is
// received, by one clock in one process. Where that time went comes from the spans
// that the engine itself sends, in every arm alike, and the stages of stages.go are
// cut from the line between those two moments, so that they add up.
//
// Reading order: bench.go (the contract of an arm, the rounds), ask.go (the client),
// vllm.go and placed.go (the arms), stages.go (where the time went), report.go and
// svg.go; pages.go and python.go check what must be alike before anything is timed;
// swap.go, footprint.go and leak.go are the other benchmark.
package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"warmd/placement"
)

// Arm is one way to start a model.
type Arm struct {
	Name string
	// Ready makes what the start is to find, before the clock runs. It may be nil. What it
	// made, end ends: called also after an error, unless there is a start, whose End does it.
	Ready func(ctx context.Context) (end func() error, err error)
	Start func(ctx context.Context) (Started, error)
}

// Started is a start under way. URL is known as soon as possible, before anything
// listens there if need be.
type Started struct {
	URL string
	// Watch returns why the start failed, or nil when ctx ends first.
	Watch func(ctx context.Context) error
	// Trace waits for the spans of the start and returns what came.
	Trace func(ctx context.Context) placement.Trace
	// Config is the engine's own word about how it is configured, empty when it says
	// nothing.
	Config func(ctx context.Context) string
	// End ends it, and returns when the next start finds the machine as this one did.
	End func() error
}

// Sample is one start. Seconds is request sent -> first streamed token received.
type Sample struct {
	Arm       string  `json:"arm"`
	Run       int     `json:"run"`
	Discarded bool    `json:"discarded,omitempty"`
	Seconds   float64 `json:"seconds"`
	// Answers is when the server answered for the first time, on the same clock.
	Answers float64 `json:"answers_seconds"`
	Text    string  `json:"text"`
	// Load1 is the machine's load average before the start, Load1After at its end.
	Load1      float64 `json:"load1"`
	Load1After float64 `json:"load1_after"`
	// Cached is the share of the files that the page cache held before the start.
	Cached Cached `json:"cached"`
	Stages Stages `json:"stages"`
	// Config is the hash of what the engine logs about its configuration, empty when it
	// could not be read.
	Config string `json:"engine_config_sha256,omitempty"`

	config string
}

// Plan is how often, and what comes before each start.
type Plan struct {
	Model  string // served name
	Runs   int    // counted rounds, after one that is discarded
	Before func() (Cached, error)
	Report func(Sample)
}

// Run runs every arm once a round. The arms take turns in being first, so that a
// drift of the machine and what one arm leaves behind for the next hit all alike. The
// first round is discarded: caches, and whatever happens only once.
func Run(ctx context.Context, arms []Arm, p Plan) ([]Sample, error) {
	var all []Sample
	for round := range p.Runs + 1 {
		first := round % len(arms)
		for _, a := range slices.Concat(arms[first:], arms[:first]) {
			s, err := p.one(ctx, a)
			if err != nil {
				return all, fmt.Errorf("run arm %s: %w", a.Name, err)
			}
			s.Run, s.Discarded = round, round == 0
			if err := alike(all, s); err != nil {
				return all, err
			}
			all = append(all, s)
			p.Report(s)
		}
	}
	return all, nil
}

// one is one start, from the state of the page cache to the end of the engine.
func (p Plan) one(ctx context.Context, a Arm) (s Sample, err error) {
	s.Arm = a.Name
	var end func() error
	defer func() {
		if end != nil {
			err = errors.Join(err, end())
		}
	}()
	if a.Ready != nil {
		if end, err = a.Ready(ctx); err != nil {
			return s, err
		}
	}
	if s.Cached, err = p.Before(); err != nil {
		return s, err
	}
	s.Load1 = Load1()
	sent := time.Now()
	e, err := a.Start(ctx)
	if err != nil {
		return s, err
	}
	end = e.End
	got, err := e.ask(ctx, p.Model)
	if err != nil {
		return s, err
	}
	s.Seconds, s.Answers, s.Text = got.token.Sub(sent).Seconds(), got.answers.Sub(sent).Seconds(), got.text
	s.Load1After = Load1()
	if s.config = e.Config(ctx); s.config != "" {
		s.Config = fmt.Sprintf("%x", sha256.Sum256([]byte(s.config)))
	}
	s.Stages = StagesOf(Moments{Sent: sent, Answers: got.answers, Token: got.token, Trace: e.Trace(ctx)})
	return s, nil
}

// ask asks until there is an answer, or the start has failed: nobody would ever listen
// on that port.
func (e Started) ask(ctx context.Context, model string) (answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.Watch(ctx); err != nil {
			cancel(err)
		}
	})
	defer wg.Wait()
	defer cancel(nil)
	got, err := ask(ctx, e.URL, model)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return got, cause
	}
	return got, err
}

// alike refuses to compare what is not the same: an arm that answers otherwise, or
// whose engine says that it is configured otherwise, is another program.
func alike(all []Sample, s Sample) error {
	for _, o := range all {
		if o.Text != s.Text {
			return fmt.Errorf("compare arms: %s answers %q, %s answers %q: they do not serve the same model the same way", s.Arm, s.Text, o.Arm, o.Text)
		}
		if o.config != "" && s.config != "" && o.config != s.config {
			was, is := difference(o.config, s.config)
			return fmt.Errorf("compare arms: their engines have different flags: %s has %q where %s has %q", o.Arm, was, s.Arm, is)
		}
	}
	return nil
}

// difference is the part around the first character that differs.
func difference(a, b string) (string, string) {
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	cut := func(s string) string { return s[max(0, min(i, len(s))-30):min(len(s), i+50)] }
	return cut(a), cut(b)
}
