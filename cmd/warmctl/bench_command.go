package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"warmd/placement"
)

func benchCommand() command {
	return command{
		name: "bench", args: "cold-start MODEL", min: 2, max: 2, complete: "dirs",
		short: "measure starts side by side: plain vLLM, cold and warm",
		long: `Starts MODEL again and again, one start at a time, and measures request sent ->
first streamed token, by one clock, in the same way in every arm:

  vllm   plain ` + "`vllm serve`" + `, no warmd anywhere, started by this command
  cold   the same start, asked of warmd (--start cold)
  warm   a parked worker (--start warm)

The arms get the same flags and environment and take turns, so that a drift of the
machine hits all of them alike. The first round is discarded; the model's files are
read just before each round, so that the page cache is warm for every arm. A runtime
without compiled bytecode is refused, and so are arms whose answers differ.
Run it on the node itself: the vllm arm is started on this host.`,
		examples: []example{
			{"warmctl bench cold-start /models/opt-125m --runtime vllm-0.32.0 --arg=--enforce-eager", "plain against warm, 5 counted rounds"},
			{"warmctl bench cold-start /models/opt-125m --arms vllm,cold,warm --runs 10 -o json", "all arms, every run kept"},
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "runtime", Usage: "`NAME`: runtime to use; default: the only one installed"},
			&cli.StringFlag{Name: "runtimes", Usage: "`DIR`: where runtimes are installed (env WARMD_RUNTIMES); for the vllm arm"},
			&cli.StringFlag{Name: "arms", Value: "vllm,warm", Usage: "`LIST`: arms to compare, the first one is what the ratio refers to"},
			&cli.IntFlag{Name: "runs", Value: 5, Usage: "`N`: counted rounds, after one that is discarded"},
			&cli.StringSliceFlag{Name: "arg", Usage: "`ARG`: engine argument for every arm; may be given many times"},
		},
		run: runBench,
	}
}

func runBench(c *call) error {
	if c.args[0] != "cold-start" {
		return usagef("bench %q is not known: cold-start is", c.args[0])
	}
	model, err := filepath.Abs(c.args[1])
	if err != nil {
		return usagef("find model folder: %v", err)
	}
	runs := c.flags.Int("runs")
	if runs < 1 || runs > 1000 {
		return usagef("--runs %d must be between 1 and 1000", runs)
	}
	m, err := c.benchRuntime()
	if err != nil {
		return err
	}
	if err := needBytecode(m.Python); err != nil {
		return err
	}
	r := placement.Request{Model: model, Name: filepath.Base(model), Runtime: m.Name, Args: c.flags.StringSlice("arg")}
	// The agent adds this by itself where the runtime's environment turns the compiler
	// off; the plain arm must get the same.
	if m.Env["TORCHDYNAMO_DISABLE"] == "1" && !slices.Contains(r.Args, "--enforce-eager") {
		r.Args = append(r.Args, "--enforce-eager")
	}
	arms, err := c.benchArms(m, r)
	if err != nil {
		return err
	}
	if !c.json {
		fmt.Fprintf(c.Out, "%s on runtime %s, flags %s\n", model, m.Name, strings.Join(r.Args, " "))
	}
	rep := benchReport{Model: model, Runtime: m.Name, Args: r.Args}
	rep.Samples, err = interleave(c.ctx, arms, r.Name, runs, func() error { return touch(model) }, func(s sample) {
		if !c.json {
			note := ""
			if s.Discarded {
				note = "  (discarded)"
			}
			fmt.Fprintf(c.Err, "  round %d  %-5s %7.2f s  load %.1f%s\n", s.Run, s.Arm, s.Seconds, s.Load1, note)
		}
	})
	if err != nil {
		return err
	}
	rep.Arms = summarise(arms, rep.Samples)
	if c.json {
		return c.printJSON(rep)
	}
	t := newTable("ARM", ">N", ">P50", ">P95", ">MIN", ">MAX", ">RATIO")
	for _, s := range rep.Arms {
		t.add(s.Arm, fmt.Sprint(s.N), inSeconds(s.P50), inSeconds(s.P95), inSeconds(s.Min), inSeconds(s.Max), fmt.Sprintf("%.1fx", s.Ratio))
	}
	t.write(c.Out, "")
	fmt.Fprintf(c.Out, "every arm answered %q\n", rep.Samples[0].Text)
	return nil
}

func inSeconds(s float64) string { return fmt.Sprintf("%.2f s", s) }

// benchArms makes the arms that were asked for, in that order.
func (c *call) benchArms(m manifest, r placement.Request) ([]arm, error) {
	k, _, err := c.coordinator()
	if err != nil {
		return nil, err
	}
	var arms []arm
	for name := range strings.SplitSeq(c.flags.String("arms"), ",") {
		switch name {
		case "vllm":
			log := filepath.Join(os.TempDir(), fmt.Sprintf("warmctl-bench-%d.log", os.Getpid()))
			arms = append(arms, vllmArm(m, r.Model, r.Name, r.Args, log))
		case "cold", "warm":
			r := r
			r.Start = placement.Start(name)
			arms = append(arms, warmdArm(k, name, r))
		default:
			return nil, usagef("--arms %q is not an arm: vllm, cold and warm are", name)
		}
	}
	return arms, nil
}

// benchRuntime reads the manifest of the runtime, which lies on this host.
func (c *call) benchRuntime() (manifest, error) {
	root := c.flags.String("runtimes")
	if root == "" {
		root = c.Getenv("WARMD_RUNTIMES")
	}
	if root == "" {
		return manifest{}, usagef("--runtimes is needed: the folder that `warmd runtime ls` names")
	}
	name := c.flags.String("runtime")
	if name == "" {
		found, _ := filepath.Glob(filepath.Join(root, "*", "runtime.json"))
		if len(found) != 1 {
			return manifest{}, usagef("--runtime is needed: %s holds %d runtimes", root, len(found))
		}
		name = filepath.Base(filepath.Dir(found[0]))
	}
	b, err := os.ReadFile(filepath.Join(root, name, "runtime.json"))
	if err != nil {
		return manifest{}, placement.Errorf(placement.CodeUnknownRuntime, "read runtime %s: %v", name, err).
			WithHint("`warmd runtime ls --root %s` lists what is there", root)
	}
	m := manifest{Name: name}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("decode runtime %s: %w", name, err)
	}
	return m, nil
}
