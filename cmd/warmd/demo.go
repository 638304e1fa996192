package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"warmd/agent/runtime"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// demoArgs keep an engine small enough for two cores; both starts get them.
var demoArgs = []string{"--dtype=bfloat16", "--enforce-eager", "--max-model-len=512", "--max-num-seqs=4"}

const demoPrompt, demoTokens = "Hello my name is", 8

// demoCommand is `warmd demo`: what the project is for, shown on this host.
func demoCommand() *cli.Command {
	return &cli.Command{
		Name: "demo", Usage: "place a model cold, then warm, on this host, and compare", HideHelpCommand: true,
		Description: "Installs vLLM for CPU (once), makes a model of opt-125m's shapes with random weights (once), runs\n" +
			"`warmd dev` in this process, places the model cold (a plain `vllm serve`) and warm (a parked worker),\n" +
			"prints the tokens and where the time went, and leaves nothing running.",
		Flags: []cli.Flag{
			rootFlag(),
			&cli.StringFlag{Name: "vllm", Value: "0.32.0", Usage: "vLLM `VERSION`"},
			&cli.StringFlag{Name: "log-level", Value: "error", Usage: "`debug|info|warn|error` of the agent and the coordinator"},
		},
		Action: func(c *cli.Context) error {
			if err := noWords(c); err != nil {
				return err
			}
			log, err := newLogger(c)
			if err != nil {
				return err
			}
			d := &demo{root: c.String("root"), version: c.String("vllm"), log: log, out: c.App.Writer}
			return d.run(c.Context)
		},
	}
}

type demo struct {
	root, version string
	log           *slog.Logger
	out           io.Writer
	coord         *coordapi.Client
}

// started is one start with what it answered.
type started struct {
	placement placement.Placement
	trace     placement.Trace
	text      string
}

func (d *demo) run(ctx context.Context) error {
	m, err := d.runtime(ctx)
	if err != nil {
		return err
	}
	models := filepath.Join(d.root, "..", "demo-models")
	if err := os.MkdirAll(models, 0o755); err != nil {
		return fmt.Errorf("make model folder: %w", err)
	}
	if err := d.step(ctx, "make a model of opt-125m's shapes", func(ctx context.Context) error {
		_, err := runtime.MakeModel(ctx, m.Python, filepath.Join(models, "opt-125m"), "--preset", "opt-125m")
		return err
	}); err != nil {
		return err
	}
	data, err := os.MkdirTemp("", "warmd-demo-")
	if err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	defer os.RemoveAll(data)

	ctx, stop := context.WithCancel(ctx)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- runDev(ctx, devConfig{
			Data: data, Runtimes: d.root, Models: []string{models}, Nodes: 1, Slots: 1, Device: "cpu", KeepTraces: 1, Log: d.log,
			Ready: func() { close(ready) },
		})
	}()
	result := make(chan error, 1)
	go func() { result <- d.place(ctx, ready, filepath.Join(data, "coordinator.sock"), m.Name) }()
	select {
	case err = <-result:
		stop()
		if e := <-ended; err == nil {
			err = e
		}
	case err = <-ended:
		stop()
		_ = <-result
		if err == nil {
			err = context.Cause(ctx)
		}
	}
	return err
}

// runtime finds or installs the vLLM of the demo.
func (d *demo) runtime(ctx context.Context) (runtime.Manifest, error) {
	name := "vllm-" + d.version
	have, _, err := runtime.List(d.root)
	if err != nil {
		return runtime.Manifest{}, err
	}
	if i := slices.IndexFunc(have, func(m runtime.Manifest) bool { return m.Name == name }); i >= 0 {
		return have[i], nil
	}
	fmt.Fprintf(d.out, "installing vLLM %s for CPU in %s (once; about 5 GB)\n", d.version, filepath.Join(d.root, name))
	show := newProgress(os.Stderr)
	defer show.end()
	return runtime.Add(ctx, runtime.AddOptions{Root: d.root, Name: name, VLLM: d.version, Device: "cpu", Progress: show.step})
}

// place is the demo proper.
func (d *demo) place(ctx context.Context, ready <-chan struct{}, server, runtimeName string) error {
	select {
	case <-ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	var err error
	if d.coord, err = coordapi.NewClient(server, nil); err != nil {
		return err
	}
	defer d.coord.Close()
	warm := func(ctx context.Context) error { return d.awaitWarm(ctx, runtimeName) }
	if err := d.step(ctx, "park a worker (imports happen here, once)", warm); err != nil {
		return err
	}
	request := placement.Request{Model: "opt-125m", Runtime: runtimeName, Args: demoArgs}
	var starts []started
	for _, mode := range []placement.Start{placement.StartCold, placement.StartWarm} {
		request.Start = mode
		err := d.step(ctx, "place opt-125m "+string(mode), func(ctx context.Context) error {
			s, err := d.start(ctx, request)
			starts = append(starts, s)
			return err
		})
		if err != nil {
			return err
		}
		if err := d.step(ctx, "release it and park the next worker", warm); err != nil {
			return err
		}
	}
	return d.show(starts[0], starts[1])
}

// start places, asks for tokens, and releases.
func (d *demo) start(ctx context.Context, r placement.Request) (s started, err error) {
	if s.placement, err = d.coord.Place(ctx, r, "ready", nil); err != nil {
		return s, err
	}
	if s.text, err = askTokens(ctx, s.placement, demoPrompt, demoTokens); err != nil {
		return s, err
	}
	if s.trace, err = d.coord.Trace(ctx, s.placement.ID); err != nil {
		return s, err
	}
	_, err = d.coord.Release(ctx, s.placement.ID, 1)
	return s, err
}

func (d *demo) awaitWarm(ctx context.Context, name string) error {
	for {
		f, err := d.coord.Fleet(ctx)
		if err != nil {
			return err
		}
		for _, n := range f.Nodes {
			for _, r := range n.Runtimes {
				if r.Name == name && r.Zygote == "down" && r.Problem != "" {
					return fmt.Errorf("park a worker: runtime %s: %s", name, r.Problem)
				}
			}
			for _, dev := range n.Devices {
				if dev.Warm[name] > 0 {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// step shows that something goes on, and for how long.
func (d *demo) step(ctx context.Context, what string, do func(context.Context) error) error {
	show := newProgress(os.Stderr)
	show.step(runtime.Step{Phase: "demo", Message: what})
	begin := time.Now()
	err := do(ctx)
	show.end()
	if err == nil {
		fmt.Fprintf(d.out, "  %6.2f s  %s\n", time.Since(begin).Seconds(), what)
	}
	return err
}

// show prints the comparison.
func (d *demo) show(cold, warm started) error {
	fmt.Fprintf(d.out, "\nprompt %q\n  cold answers %q\n  warm answers %q\n\n", demoPrompt, cold.text, warm.text)
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "request to first token\tcold\twarm\t\t")
	c, h := cold.placement.StartSeconds, warm.placement.StartSeconds
	fmt.Fprintf(w, "total\t%.2f s\t%.2f s\t%.1f times faster\t\n", c, h, c/h)
	for _, row := range phaseRows(cold.trace, warm.trace) {
		fmt.Fprintf(w, "%s\t%s\t%s\t\t\n", row.name, row.cold, row.warm)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "\nPhases are vLLM's own spans and warmd's; they nest and overlap, so they do not add up to the total.")
	if cold.text != warm.text || warm.text == "" {
		return fmt.Errorf("compare tokens: the parked start answers %q, the stock start %q", warm.text, cold.text)
	}
	return nil
}

type phaseRow struct{ name, cold, warm string }

// phaseRows lines up the phases of two traces, longest first.
func phaseRows(cold, warm placement.Trace) []phaseRow {
	longest := map[string]float64{}
	cell := func(t placement.Trace, name string) string {
		var sum float64
		var before, found bool
		for _, p := range t.Phases {
			if p.Name == name {
				sum, before, found = sum+p.Duration, p.Before, true
			}
		}
		switch {
		case !found:
			return "-"
		case before:
			return fmt.Sprintf("(%.2f s before)", sum)
		}
		return fmt.Sprintf("%.2f s", sum)
	}
	for _, t := range []placement.Trace{cold, warm} {
		for _, p := range t.Phases {
			longest[p.Name] = max(longest[p.Name], p.Duration)
		}
	}
	var names []string
	for name, d := range longest {
		if d >= 0.05 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if longest[a] != longest[b] {
			if longest[a] > longest[b] {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	var rows []phaseRow
	for _, n := range names {
		rows = append(rows, phaseRow{n, cell(cold, n), cell(warm, n)})
	}
	return rows
}

// askTokens asks for greedy tokens the way any client does.
func askTokens(ctx context.Context, p placement.Placement, prompt string, tokens int) (string, error) {
	body, err := json.Marshal(map[string]any{"model": p.Request.ServedName(), "prompt": prompt, "max_tokens": tokens, "temperature": 0})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Endpoint+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask for tokens: %w", err)
	}
	defer resp.Body.Close()
	var answer struct {
		Choices []struct{ Text string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return "", fmt.Errorf("ask for tokens: %s: %w", resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK || len(answer.Choices) == 0 {
		return "", fmt.Errorf("ask for tokens: %s", resp.Status)
	}
	return answer.Choices[0].Text, nil
}
