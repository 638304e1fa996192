package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"warmd/cmd/internal/bench"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func benchCommand() command {
	return command{
		name: "bench", args: "cold-start MODEL | swap MODEL MODEL...", min: 1, max: -1, complete: "dirs",
		short: "measure starts side by side, and swaps of one model for another",
		long: `cold-start MODEL starts MODEL again and again, one start at a time, and measures request
sent -> first streamed token, by one clock, in the same way in every arm:

  vllm      plain ` + "`vllm serve`" + `, no warmd anywhere, started by this command
  cold      the same start, asked of warmd (--start cold)
  warm      a parked worker (--start warm)
  sleeping  a model that sleeps, woken (GPU only, with --arg=--enable-sleep-mode)

The arms get the same flags and environment and take turns; the first round is
discarded. Before each start the files of model and runtime are read (--page-cache warm)
or dropped from the page cache (cold). A runtime without compiled bytecode is refused,
and so are arms whose answers or whose engines' configurations differ. The stages of each
start come from the spans that the engine sends; what they leave of the total is shown as
unaccounted, and more than 3 % of it is an error.

swap MODEL MODEL... places one model after the other in the same slot: release, slot free
and memory proven free, next model's first token. Afterwards it compares processes, open
files, shared memory, sockets and the memory of agent and zygotes with what was there
before; a leak is an error.

-o markdown is for a document, and -o svg draws the stages of cold-start. Run it on the
node itself: it starts engines, and looks into /proc, on this host.`,
		examples: []example{
			{"warmctl bench cold-start /models/opt-125m --arg=--enforce-eager", "plain against warm, 5 counted rounds"},
			{"warmctl bench cold-start /models/opt-125m --arms vllm,cold,warm --runs 10 -o json", "all arms, every run kept"},
			{"warmctl bench cold-start --from runs.json -o svg > runs.svg", "a picture of what was measured"},
			{"warmctl bench swap /models/a /models/b --swaps 200", "many models one after another"},
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "runtime", Usage: "`NAME`: runtime to use; default: the only one installed"},
			&cli.StringFlag{Name: "runtimes", Usage: "`DIR`: where runtimes are installed (env WARMD_RUNTIMES); for the vllm arm"},
			&cli.StringFlag{Name: "arms", Value: "vllm,warm", Usage: "`LIST`: arms to compare, the first one is what the ratio refers to"},
			&cli.IntFlag{Name: "runs", Value: 5, Usage: "`N`: counted rounds, after one that is discarded"},
			&cli.StringFlag{Name: "page-cache", Value: bench.PagesWarm, Usage: "`STATE`: warm or cold, before each start"},
			&cli.StringFlag{Name: "from", Usage: "`FILE`: measure nothing, print what an earlier -o json wrote"},
			&cli.StringSliceFlag{Name: "arg", Usage: "`ARG`: engine argument for every arm; may be given many times"},
			&cli.StringSliceFlag{Name: "env", Usage: "`KEY=VALUE`: engine environment for every arm; may be given many times"},
			&cli.IntFlag{Name: "swaps", Value: 20, Usage: "`N`: swaps to measure"},
		},
		formats: []string{"markdown", "svg"},
		run: func(c *call) error {
			switch c.args[0] {
			case "cold-start":
				return benchColdStart(c)
			case "swap":
				return benchSwap(c)
			}
			return usagef("bench %q is not known: cold-start and swap are", c.args[0])
		},
	}
}

func benchColdStart(c *call) error {
	if len(c.args) < 2 && c.flags.String("from") == "" {
		return usagef("bench cold-start needs MODEL")
	}
	if len(c.args) > 2 {
		return usagef("bench cold-start takes one MODEL, got also %q", strings.Join(c.args[2:], " "))
	}
	var rep *bench.Report
	var err error
	if from := c.flags.String("from"); from != "" {
		rep, err = bench.ReadReport(from)
	} else {
		rep, err = measureColdStart(c)
	}
	if err != nil {
		return err
	}
	switch c.format {
	case "json":
		err = c.printJSON(rep)
	case "svg":
		_, err = fmt.Fprint(c.Out, rep.SVG())
	default:
		c.printGrids(rep.Grids(), rep.About(), rep.Warnings)
	}
	if err == nil && !rep.AddsUp() {
		return placement.Errorf(placement.CodeInternal, "check stages: they do not add up to the total within 3 %% in every run").
			WithHint("`warmctl trace` of a start shows which spans came; vLLM needs its opentelemetry packages to send any: `warmd runtime check`")
	}
	return err
}

func measureColdStart(c *call) (*bench.Report, error) {
	model, err := filepath.Abs(c.args[1])
	if err != nil {
		return nil, usagef("find model folder: %v", err)
	}
	runs := c.flags.Int("runs")
	if runs < 1 || runs > 1000 {
		return nil, usagef("--runs %d must be between 1 and 1000", runs)
	}
	mode := c.flags.String("page-cache")
	if mode != bench.PagesWarm && mode != bench.PagesCold {
		return nil, usagef("--page-cache %q must be warm or cold", mode)
	}
	rt, err := c.benchRuntime()
	if err != nil {
		return nil, err
	}
	py, err := bench.AskPython(c.ctx, rt)
	if err != nil {
		return nil, err
	}
	if err := py.Compiled(rt); err != nil {
		return nil, err
	}
	r, err := c.benchRequest(model, rt)
	if err != nil {
		return nil, err
	}
	arms, names, end, err := c.benchArms(rt, r)
	if err != nil {
		return nil, err
	}
	defer end()
	pages, err := bench.NewPages(mode, model, append(py.Paths, filepath.Join(rt.Dir, "cache")))
	if err != nil {
		return nil, err
	}
	rep := &bench.Report{
		Model: model, Runtime: rt.Name, Version: rt.Version, Args: r.Args, Env: r.Env, Begun: c.Now(), Host: bench.ThisHost(),
		Pages: mode, PagesBy: pages.How, Python: py.Packages, Warnings: []string{},
	}
	if busy := rep.Host.Busy(); busy != "" {
		fmt.Fprintf(c.Err, "warning: %s\n", busy)
	}
	rep.Samples, err = bench.Run(c.ctx, arms, bench.Plan{Model: r.Name, Runs: runs, Before: pages.Before, Report: func(s bench.Sample) {
		note := ""
		if s.Discarded {
			note = "  (discarded)"
		}
		fmt.Fprintf(c.Err, "  round %d  %-8s %7.2f s  load %.1f%s\n", s.Run, s.Arm, s.Seconds, s.Load1, note)
	}})
	if err != nil {
		return nil, err
	}
	rep.Finish(names)
	return rep, nil
}

// benchRequest is what every arm is given.
func (c *call) benchRequest(model string, rt bench.Runtime) (placement.Request, error) {
	env, err := envPairs(c.flags.StringSlice("env"))
	if err != nil {
		return placement.Request{}, err
	}
	r := placement.Request{Model: model, Name: filepath.Base(model), Runtime: rt.Name, Args: c.flags.StringSlice("arg"), Env: env}
	// What the agent does by itself the plain arm must get, too: where the runtime's
	// environment turns the compiler off, and where a flag wins (runtime.FlagsWin).
	if slices.ContainsFunc(r.Args, func(a string) bool {
		return strings.HasPrefix(strings.ReplaceAll(a, "_", "-"), "--kv-cache-memory-bytes")
	}) {
		delete(rt.Env, "VLLM_CPU_KVCACHE_SPACE")
	}
	if rt.Env["TORCHDYNAMO_DISABLE"] == "1" && !slices.Contains(r.Args, "--enforce-eager") {
		r.Args = append(r.Args, "--enforce-eager")
	}
	return r, nil
}

// benchArms makes the arms that were asked for, in that order; end ends what they
// share.
func (c *call) benchArms(rt bench.Runtime, r placement.Request) (arms []bench.Arm, names []string, end func(), err error) {
	end = func() {}
	var k *coordapi.Client // one for all of warmd's arms
	warmds := func(arm func(*coordapi.Client) bench.Arm) (bench.Arm, error) {
		if k == nil {
			var err error
			if k, _, err = c.coordinator(); err != nil {
				return bench.Arm{}, err
			}
		}
		return arm(k), bench.Parked(c.ctx, k, rt.Name)
	}
	for name := range strings.SplitSeq(c.flags.String("arms"), ",") {
		if slices.Contains(names, name) {
			return nil, nil, end, usagef("--arms names %s twice", name)
		}
		var a bench.Arm
		switch name {
		case "vllm":
			a, end, err = bench.Plain(c.ctx, bench.Engine{Runtime: rt, Model: r.Model, Name: r.Name, Args: r.Args, Env: r.Env})
		case "cold", "warm":
			r.Start = placement.Start(name)
			a, err = warmds(func(k *coordapi.Client) bench.Arm { return bench.Placed(k, name, r) })
		case "sleeping":
			if err = bench.CanSleep(rt, r.Args); err == nil {
				r.Start = placement.StartWarm
				a, err = warmds(func(k *coordapi.Client) bench.Arm { return bench.Asleep(k, name, r) })
			}
		default:
			err = usagef("--arms %q is not an arm: vllm, cold, warm and sleeping are", name)
		}
		if err != nil {
			end()
			return nil, nil, func() {}, err
		}
		arms, names = append(arms, a), append(names, name)
	}
	return arms, names, end, nil
}

// benchRuntime reads the manifest of the runtime, which lies on this host.
func (c *call) benchRuntime() (bench.Runtime, error) {
	root := cmp.Or(c.flags.String("runtimes"), c.Getenv("WARMD_RUNTIMES"))
	if root == "" {
		return bench.Runtime{}, usagef("--runtimes is needed: the folder that `warmd runtime ls` names")
	}
	name := c.flags.String("runtime")
	if name == "" {
		found, _ := filepath.Glob(filepath.Join(root, "*", "runtime.json"))
		if len(found) != 1 {
			return bench.Runtime{}, usagef("--runtime is needed: %s holds %d runtimes", root, len(found))
		}
		name = filepath.Base(filepath.Dir(found[0]))
	}
	return bench.LoadRuntime(root, name)
}

// printGrids prints tables, what they are about and what must be known with them.
func (c *call) printGrids(grids []bench.Grid, about, warnings []string) {
	for i, g := range grids {
		t := newTable()
		for j, h := range g.Head {
			if j > 0 {
				t.right[j] = true
			}
			t.head = append(t.head, h)
		}
		for _, r := range g.Rows {
			t.add(slices.Clone(r)...)
		}
		if i > 0 {
			fmt.Fprintln(c.Out)
		}
		if c.format == "markdown" {
			fmt.Fprintf(c.Out, "### %s\n\n", g.Title)
			t.markdown(c.Out)
			continue
		}
		fmt.Fprintln(c.Out, g.Title)
		t.write(c.Out, "  ")
	}
	bullet := ""
	if c.format == "markdown" {
		bullet = "- "
	}
	fmt.Fprintln(c.Out)
	for _, line := range about {
		fmt.Fprintf(c.Out, "%s%s\n", bullet, printable(line))
	}
	for _, line := range warnings {
		fmt.Fprintf(c.Out, "%swarning: %s\n", bullet, printable(line))
	}
}
