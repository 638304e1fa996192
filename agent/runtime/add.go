package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"time"
)

// AddOptions says what to add. Exactly one of VLLM, Python alone, and ExecCommand
// decides how: install, adopt, or a command.
type AddOptions struct {
	Root string `json:"-"`
	Name string `json:"name"`
	// VLLM is the version to install; Python is then the interpreter to use.
	VLLM string `json:"vllm,omitempty"`
	// Device is cpu or cuda; "" guesses: by the installed engine when it is adopted,
	// else by whether the host has an NVIDIA device.
	Device string `json:"device,omitempty"`
	// Python without VLLM is the interpreter of an installed engine to adopt.
	Python string `json:"python,omitempty"`
	// Dir puts the runtime's folder elsewhere; Root then holds a link to it.
	Dir string `json:"dir,omitempty"`
	// ExecCommand is the command of kind exec, with {host}, {port} and {model} in it.
	ExecCommand []string `json:"exec,omitempty"`
	// Env is added to the runtime's environment, over the defaults.
	Env map[string]string `json:"env,omitempty"`
	// Progress is told what happens; may be nil.
	Progress func(Step) `json:"-"`
}

// Add adds a runtime. It is atomic: until the last rename List shows no runtime of
// that name. A failed or interrupted Add keeps what it did in the runtime's folder,
// and the same Add again goes on there; with other options it starts clean.
func Add(ctx context.Context, o AddOptions) (Manifest, error) {
	report := newProgress(o.Progress)
	if err := o.check(); err != nil {
		return Manifest{}, err
	}
	dir, unlock, err := o.claim()
	if err != nil {
		return Manifest{}, err
	}
	defer unlock()
	defer readable()()
	a := &adder{opts: o, dir: dir, work: filepath.Join(dir, workDir), report: report}
	m, err := a.run(ctx)
	if err != nil {
		err = fmt.Errorf("add runtime %s: %w", o.Name, err)
		if a.abandon() {
			return Manifest{}, err
		}
		return Manifest{}, hint(err, "nothing was added; run the same command again to go on, or `warmd runtime rm %s` to throw the rest away", o.Name)
	}
	report.say("done", "runtime %s is ready: %s", m.Name, m.describe())
	return m, nil
}

// abandon removes an attempt that did nothing worth keeping.
func (a *adder) abandon() bool {
	if st, err := readState(a.work); err != nil || len(st.Done) > 0 {
		return false
	}
	_ = os.Remove(filepath.Join(a.opts.Root, a.opts.Name)) // the link of --dir; a folder with files stays
	return os.RemoveAll(a.dir) == nil
}

func (m Manifest) describe() string {
	if m.Kind == KindExec {
		return fmt.Sprintf("command %v", m.Command)
	}
	return fmt.Sprintf("vLLM %s for %s, Python %s, profile %.12s", m.Version, m.Device, m.PythonVersion, m.ProfileKey)
}

func (o *AddOptions) check() error {
	if err := CheckName(o.Name); err != nil {
		return err
	}
	if o.Root == "" {
		o.Root = DefaultRoot()
	}
	for _, p := range []*string{&o.Root, &o.Dir} {
		if abs, err := filepath.Abs(*p); err != nil {
			return fmt.Errorf("check folder: %w", err)
		} else if *p != "" {
			*p = abs
		}
	}
	if o.Device != "" && o.Device != "cpu" && o.Device != "cuda" {
		return fmt.Errorf("check device: %q is neither cpu nor cuda", o.Device)
	}
	for k := range o.Env {
		if w := Sealed(k); w != "" {
			return fmt.Errorf("check environment: %s is never set: %s", k, w)
		}
	}
	switch {
	case len(o.ExecCommand) > 0 && o.VLLM != "":
		return hint(errors.New("check options: a vLLM version and a command exclude each other"), "give --vllm or --exec")
	case len(o.ExecCommand) > 0:
		return checkCommand(o.ExecCommand)
	case o.VLLM != "":
		if o.Device == "" {
			o.Device = hostDevice()
		}
		_, err := findRelease(o.VLLM)
		return err
	case o.Python == "":
		return hint(errors.New("check options: nothing to add"),
			"give --vllm %s, or --python PATH of an installed vLLM, or --exec -- COMMAND", KnownVersions()[len(releases)-1])
	}
	return nil
}

// hostDevice guesses by what the NVIDIA driver makes.
func hostDevice() string {
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		return "cuda"
	}
	return "cpu"
}

// adder carries one Add through its steps.
type adder struct {
	opts      AddOptions
	dir, work string
	report    *progress
}

func (a *adder) run(ctx context.Context) (Manifest, error) {
	m := Manifest{Name: a.opts.Name, Kind: KindVLLM, Created: time.Now().UTC().Truncate(time.Second), Dir: a.dir}
	switch {
	case len(a.opts.ExecCommand) > 0:
		return a.exec(ctx, m)
	case a.opts.VLLM != "":
		if err := a.install(ctx, &m); err != nil {
			return m, err
		}
	default:
		m.Adopted, m.Python = true, a.opts.Python
		if abs, err := filepath.Abs(m.Python); err == nil {
			m.Python = abs // links are kept: a venv's python is one
		}
		if err := reachable(m.Python); err != nil {
			return m, err
		}
	}
	if err := a.describe(ctx, &m); err != nil {
		return m, err
	}
	if err := a.step(ctx, "rehearse", func() error { return a.rehearse(ctx, m) }); err != nil {
		return m, err
	}
	return m, a.commit(&m)
}

// install makes the venv. Each step that is done is written down, so that the next
// attempt does not fetch gigabytes again.
func (a *adder) install(ctx context.Context, m *Manifest) error {
	rel, err := findRelease(a.opts.VLLM)
	if err != nil {
		return err
	}
	base, err := findPython(ctx, a.opts.Python, max(minPython, rel.minPython))
	if err != nil {
		return err
	}
	if err := reachable(base.Path); err != nil {
		return err
	}
	a.report.say("python", "using %s", base)
	in := &installer{root: a.opts.Root, dir: a.dir, work: a.work, base: base, opts: a.opts, report: a.report}
	if err := in.findUV(ctx); err != nil {
		return err
	}
	m.Python, m.Device = in.python(), a.opts.Device
	if err := a.step(ctx, "venv", func() error { return in.makeVenv(ctx) }); err != nil {
		return err
	}
	if err := a.step(ctx, "install", func() error { return in.installVLLM(ctx) }); err != nil {
		return err
	}
	return a.step(ctx, "bytecode", func() error {
		a.report.say("bytecode", "compiling bytecode: every start is twice as fast with it")
		return compileBytecode(ctx, in.command(), m.Python, filepath.Join(a.dir, venvDir, "lib"))
	})
}

// step runs what is not done yet, and writes down that it is.
func (a *adder) step(ctx context.Context, name string, do func() error) error {
	st, err := readState(a.work)
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if slices.Contains(st.Done, name) {
		a.report.say(name, "done before")
		return nil
	}
	if err := do(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	st.Done = append(st.Done, name)
	return writeState(a.work, st)
}

// describe fills in what the installed engine says about itself.
func (a *adder) describe(ctx context.Context, m *Manifest) error {
	a.report.say("inspect", "looking at %s", m.Python)
	found, err := inspect(ctx, m.Python)
	if err != nil {
		return err
	}
	if err := found.usable(m.Python); err != nil {
		return err
	}
	found.fill(m)
	if m.Device == "" {
		if m.Device = a.opts.Device; m.Device == "" {
			m.Device = found.device()
		}
	}
	if m.Adopted {
		for _, f := range adoptedFindings(*m, found) {
			a.report.warn("inspect", "%s; %s", f.Message, f.Cure)
		}
	}
	m.Env = engineEnv(a.dir, m.Python, m.Device, goruntime.NumCPU())
	maps.Copy(m.Env, a.opts.Env)
	m.ImportEnv, m.ProfileKey = importEnv(m.Env), ""
	m.ProfileKey = ProfileKeyOf(*m)
	m.Profile, m.Model = profileFile, modelDir
	if err := makeCaches(m.Env, a.dir); err != nil {
		return err
	}
	return parkable(ctx, *m, a.report)
}

// rehearse runs the rehearsal in the work folder, where its manifest is no
// runtime's yet.
func (a *adder) rehearse(ctx context.Context, m Manifest) error {
	a.report.say("rehearse", "loading tiny models, parked, to record what a load imports")
	if err := m.save(filepath.Join(a.work, manifestFile)); err != nil {
		return err
	}
	return rehearse(ctx, m, a.work, a.report)
}

// commit makes the runtime appear: everything into its place, the manifest last.
func (a *adder) commit(m *Manifest) error {
	for _, f := range []string{m.Profile, m.Model} {
		if f == "" {
			continue
		}
		to := filepath.Join(a.dir, f)
		if _, err := os.Stat(filepath.Join(a.work, f)); errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(to); err == nil {
				continue // an attempt before this one ended between here and the manifest
			}
		}
		if fi, err := os.Stat(to); err == nil && fi.IsDir() {
			_ = os.RemoveAll(to) // a rename replaces a file, but no folder
		}
		if err := os.Rename(filepath.Join(a.work, f), to); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
	}
	if err := giveCaches(a.dir); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if err := m.save(filepath.Join(a.dir, manifestFile)); err != nil {
		return err
	}
	_ = os.RemoveAll(a.work) // what is left of it harms nobody
	return nil
}
