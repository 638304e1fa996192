package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"warmd/agent/runtime"
)

func rootFlag() cli.Flag {
	return &cli.StringFlag{Name: "root", Usage: "`DIR` of all runtimes", Value: runtime.DefaultRoot(), DefaultText: "$WARMD_RUNTIMES, else /var/lib/warmd/runtimes for root, else ~/.local/share/warmd/runtimes"}
}

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`json` for machines"}
}

// runtimeCommand is `warmd runtime`: which engines this host has.
func runtimeCommand() *cli.Command {
	return &cli.Command{
		Name: "runtime", Usage: "add, list, check and remove the engines of this host", HideHelpCommand: true,
		Subcommands: []*cli.Command{
			{
				Name: "add", Usage: "install vLLM, adopt an installed one, or take any command",
				ArgsUsage: "NAME (--vllm VERSION | --python PATH | --exec -- COMMAND...)",
				Description: "warmd runtime add vllm --vllm 0.32.0 --device cpu\n" +
					"warmd runtime add mine --python /opt/venv/bin/python\n" +
					"warmd runtime add llama --exec -- llama-server -m {model}/model.gguf --host {host} --port {port}\n\n" +
					"In the command, {host}, {port}, {model} and {name} are replaced when a model is placed. It is run as it is,\n" +
					"without a shell. An add that failed or was interrupted goes on when the same command is given again.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "vllm", Usage: "vLLM `VERSION` to install (" + strings.Join(runtime.KnownVersions(), ", ") + ")"},
					&cli.StringFlag{Name: "device", Usage: "`cpu|cuda`: what to install it for; default: what this host has"},
					&cli.StringFlag{Name: "python", Usage: "`PATH` of the interpreter: to build with, or, without --vllm, of the vLLM to adopt"},
					&cli.StringFlag{Name: "dir", Usage: "keep the runtime in `DIR`, with a link to it in the root"},
					&cli.BoolFlag{Name: "exec", Usage: "add the command behind --"},
					&cli.StringSliceFlag{Name: "env", Usage: "`KEY=VALUE` in the engine's environment; may be repeated"},
					rootFlag(), outputFlag(),
				},
				Action: addRuntime,
			},
			{Name: "ls", Aliases: []string{"list"}, Usage: "list the runtimes", Flags: []cli.Flag{rootFlag(), outputFlag()}, Action: listRuntimes},
			{
				Name: "check", Usage: "say what is wrong with a runtime and what to do; exit code 1 when something is", ArgsUsage: "[NAME...]",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "fix", Usage: "do what can be done: bytecode, profile, caches"}, rootFlag(), outputFlag()},
				Action: checkRuntimes,
			},
			{Name: "rm", Usage: "remove a runtime, finished or not", ArgsUsage: "NAME", Flags: []cli.Flag{rootFlag(), outputFlag()}, Action: removeRuntime},
		},
	}
}

func addRuntime(c *cli.Context) error {
	words, command, err := allArgs(c)
	if err != nil {
		return err
	}
	name, err := oneWord(words, "runtime add NAME")
	switch {
	case err != nil:
		return err
	case c.Bool("exec") && len(command) == 0:
		return cli.Exit("--exec without a command: warmd runtime add NAME --exec -- COMMAND... {port} {model}", 2)
	case !c.Bool("exec") && len(command) > 0:
		return cli.Exit("a command without --exec: warmd runtime add NAME --exec -- COMMAND... {port} {model}", 2)
	}
	env, err := envPairs(c.StringSlice("env"))
	if err != nil {
		return err
	}
	show := newProgress(os.Stderr)
	m, err := runtime.Add(c.Context, runtime.AddOptions{
		Root: c.String("root"), Name: name, VLLM: c.String("vllm"), Device: c.String("device"), Python: c.String("python"),
		Dir: c.String("dir"), ExecCommand: command, Env: env, Progress: show.step,
	})
	show.end()
	if err != nil {
		return interrupted(err)
	}
	return printAs(c, m, func() { fmt.Fprintf(c.App.Writer, "runtime %s is ready in %s\n", m.Name, m.Dir) })
}

// interrupted makes an interrupt a failure: a signal is how a daemon ends, but what
// was to be done here is not done.
func interrupted(err error) error {
	if errors.Is(err, context.Canceled) {
		return cli.Exit(err.Error(), 130)
	}
	return err
}

func envPairs(list []string) (map[string]string, error) {
	env := map[string]string{}
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, cli.Exit(fmt.Sprintf("--env %q: write KEY=VALUE", kv), 2)
		}
		env[k] = v
	}
	return env, nil
}

// shownRuntime is a runtime in JSON, with the folder that the file itself lacks.
type shownRuntime struct {
	runtime.Manifest
	Dir string `json:"dir"`
}

func listRuntimes(c *cli.Context) error {
	if words, _, err := allArgs(c); err != nil || len(words) > 0 {
		return errors.Join(err, tooMany(words))
	}
	have, bad, err := runtime.List(c.String("root"))
	if err != nil {
		return err
	}
	shown := []shownRuntime{}
	for _, m := range have {
		shown = append(shown, shownRuntime{m, m.Dir})
	}
	all := struct {
		Runtimes []shownRuntime    `json:"runtimes"`
		Problems []runtime.Problem `json:"problems,omitempty"`
	}{shown, bad}
	return printAs(c, all, func() {
		if len(have)+len(bad) == 0 {
			fmt.Fprintf(c.App.ErrWriter, "no runtime in %s; warmd runtime add NAME --vllm %s makes one\n", c.String("root"), slices.Max(runtime.KnownVersions()))
			return
		}
		w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tKIND\tVERSION\tDEVICE\tPYTHON\tPROFILE\tADDED\tDIR")
		for _, m := range have {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%.12s\t%s\t%s\n", m.Name, m.Kind, dash(m.Version), dash(m.Device), dash(m.PythonVersion), m.ProfileKey, m.Created.Local().Format("2006-01-02 15:04"), m.Dir)
		}
		_ = w.Flush()
		for _, p := range bad {
			fmt.Fprintf(c.App.ErrWriter, "%s: %s\n  do: %s\n", p.Name, p.Message, p.Cure)
		}
	})
}

// checkedRuntime is the answer of a check.
type checkedRuntime struct {
	Name     string            `json:"name"`
	OK       bool              `json:"ok"`
	Findings []runtime.Finding `json:"findings"`
}

func checkRuntimes(c *cli.Context) error {
	names, _, err := allArgs(c)
	if err != nil {
		return err
	}
	have, bad, err := runtime.List(c.String("root"))
	if err != nil {
		return err
	}
	if len(names) == 0 {
		for _, m := range have {
			names = append(names, m.Name)
		}
		for _, p := range bad {
			names = append(names, p.Name)
		}
	}
	results, wrong := []checkedRuntime{}, 0
	for _, name := range names {
		r, err := checkOne(c, name)
		if err != nil {
			return err
		}
		if !r.OK {
			wrong++
		}
		results = append(results, r)
	}
	if err := printAs(c, results, func() { printChecks(c, results) }); err != nil {
		return err
	}
	if wrong > 0 {
		return cli.Exit(fmt.Sprintf("check runtimes: %d of %d need attention", wrong, len(names)), 1)
	}
	return nil
}

func checkOne(c *cli.Context, name string) (checkedRuntime, error) {
	r := checkedRuntime{Name: name, Findings: []runtime.Finding{}}
	if err := runtime.CheckName(name); err != nil {
		return r, err
	}
	m, err := runtime.Load(filepath.Join(c.String("root"), name))
	if p, ok := errors.AsType[runtime.Problem](err); ok {
		if _, err := os.Lstat(p.Dir); err != nil {
			p.Message, p.Cure = "there is no such runtime in "+c.String("root"), "warmd runtime ls shows what there is"
		}
		r.Findings = append(r.Findings, runtime.Finding{Code: "manifest", Message: p.Message, Cure: p.Cure})
		return r, nil
	}
	findings, err := runtime.Check(c.Context, m)
	if err != nil {
		return r, err
	}
	if c.Bool("fix") && slices.ContainsFunc(findings, func(f runtime.Finding) bool { return f.Fixable }) {
		show := newProgress(os.Stderr)
		m, err = runtime.Fix(c.Context, m, findings, show.step)
		show.end()
		if err != nil {
			return r, interrupted(err)
		}
		if findings, err = runtime.Check(c.Context, m); err != nil {
			return r, err
		}
	}
	r.Findings = append(r.Findings, findings...)
	r.OK = len(r.Findings) == 0
	return r, nil
}

func printChecks(c *cli.Context, results []checkedRuntime) {
	if len(results) == 0 {
		fmt.Fprintf(c.App.ErrWriter, "no runtime in %s\n", c.String("root"))
	}
	for _, r := range results {
		if r.OK {
			fmt.Fprintf(c.App.Writer, "%s: ok\n", r.Name)
		}
		for _, f := range r.Findings {
			fmt.Fprintf(c.App.Writer, "%s: %s\n  do: %s\n", r.Name, f.Message, f.Cure)
		}
	}
}

func removeRuntime(c *cli.Context) error {
	words, _, err := allArgs(c)
	if err != nil {
		return err
	}
	name, err := oneWord(words, "runtime rm NAME")
	if err != nil {
		return err
	}
	root, err := filepath.Abs(c.String("root"))
	if err != nil {
		return fmt.Errorf("remove runtime: %w", err)
	}
	if err := runtime.Remove(c.Context, root, name); err != nil {
		return err
	}
	return printAs(c, map[string]string{"removed": name}, func() { fmt.Fprintf(c.App.Writer, "runtime %s is gone\n", name) })
}

// printAs prints a value as JSON when that was asked for, else as people read it.
func printAs(c *cli.Context, v any, people func()) error {
	switch c.String("output") {
	case "":
		people()
		return nil
	case "json":
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	return cli.Exit(fmt.Sprintf("-o %q: only json is known", c.String("output")), 2)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
