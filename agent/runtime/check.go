package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
)

// Finding is something that is wrong with a runtime, and what to do about it.
type Finding struct {
	Code    string `json:"code"` // manifest, python, vllm, device, engine, environment, profile_key, files, bytecode, tracing, profile, caches, program, access, owner
	Message string `json:"message"`
	Cure    string `json:"cure"`
	// Fixable says that Fix can do it.
	Fixable bool `json:"fixable,omitempty"`
}

// Check compares a runtime with its manifest. It changes nothing and imports no
// engine: it takes a second. No finding means that it should work.
func Check(ctx context.Context, m Manifest) ([]Finding, error) {
	if m.Kind == KindExec {
		return append(checkExec(m), checkOwner(m)...), nil
	}
	again := fmt.Sprintf("warmd runtime rm %s, then add it again", m.Name)
	if _, err := os.Stat(m.Python); err != nil {
		return []Finding{{Code: "python", Message: fmt.Sprintf("the interpreter %s cannot be used: %v", m.Python, errText(err)), Cure: again}}, nil
	}
	found, err := inspect(ctx, m.Python)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return []Finding{{Code: "python", Message: fmt.Sprintf("the interpreter does not run: %v", err), Cure: again}}, nil
	}
	if err := found.usable(m.Python); err != nil {
		f := Finding{Code: "engine", Message: err.Error(), Cure: again}
		if h, ok := errors.AsType[*HintError](err); ok {
			f.Message, f.Cure = h.Err.Error(), h.Hint
		}
		return []Finding{f}, nil
	}
	out, err := badFacts(ctx, m)
	if err != nil {
		return nil, err
	}
	out = append(out, checkEnv(m)...)
	out = append(out, checkKey(m, found)...)
	out = append(out, checkFiles(m, found)...)
	out = append(out, adoptedFindings(m, found)...)
	out = append(out, checkProfile(m)...)
	return append(append(out, checkCaches(m)...), checkOwner(m)...), nil
}

// checkKey says what drifted away from the manifest.
func checkKey(m Manifest, found inspection) []Finding {
	now := m
	found.fill(&now)
	now.ImportEnv = importEnv(m.Env)
	if ProfileKeyOf(now) == m.ProfileKey {
		return nil
	}
	var what []string
	diff := func(name, was, is string) {
		if was != is {
			what = append(what, fmt.Sprintf("%s was %s, is %s", name, was, is))
		}
	}
	diff("vLLM", m.Version, now.Version)
	diff("Python", m.PythonVersion, now.PythonVersion)
	diff("torch", m.TorchVersion, now.TorchVersion)
	for _, p := range now.Plugins {
		if !slices.Contains(m.Plugins, p) {
			what = append(what, "new plugin "+p)
		}
	}
	for _, p := range m.Plugins {
		if !slices.Contains(now.Plugins, p) {
			what = append(what, "plugin "+p+" is gone")
		}
	}
	if len(what) == 0 {
		what = []string{"the environment in " + manifestFile + " was edited, or this warmd computes the key otherwise"}
	}
	return []Finding{{Code: "profile_key", Message: "the runtime is no longer what was recorded: " + strings.Join(what, "; "),
		Cure: fixHint(m) + " rehearses it again and records the new key", Fixable: true}}
}

// checkEnv finds what a newer warmd gives its engines and the one that added this
// runtime did not. A value that somebody chose is not looked at.
func checkEnv(m Manifest) []Finding {
	lacks := lackingEnv(m)
	if len(lacks) == 0 {
		return nil
	}
	return []Finding{{Code: "environment", Message: "added by an older warmd, its environment lacks " + strings.Join(slices.Sorted(maps.Keys(lacks)), ", "),
		Cure: fixHint(m) + " adds it and rehearses again", Fixable: true}}
}

func lackingEnv(m Manifest) map[string]string {
	env := engineEnv(m.Dir, m.Python, m.Device, goruntime.NumCPU())
	maps.DeleteFunc(env, func(k, _ string) bool { _, has := m.Env[k]; return has })
	return env
}

func checkBytecode(m Manifest, found inspection) []Finding {
	if found.Sources == 0 || found.Uncompiled*20 <= found.Sources {
		return nil
	}
	f := Finding{Code: "bytecode", Message: fmt.Sprintf("%d of %d files of vLLM have no bytecode: every start takes longer", found.Uncompiled, found.Sources)}
	if m.Adopted {
		f.Cure = fmt.Sprintf("it is not warmd's venv to change: %s -m compileall -q -j 0 %s", m.Python, found.SitePackages)
	} else {
		f.Cure, f.Fixable = fixHint(m)+" compiles it", true
	}
	return []Finding{f}
}

func noTracing(m Manifest, found inspection) Finding {
	return Finding{Code: "tracing", Message: "the phases of a start will be missing: no " + strings.Join(found.NoTracing, ", "),
		Cure: fmt.Sprintf("%s -m pip install '%s'", m.Python, strings.Join(tracing, "' '"))}
}

// checkFiles compares the venv with what its installer wrote down.
func checkFiles(m Manifest, found inspection) []Finding {
	if found.DamagedCount == 0 {
		return nil
	}
	f := Finding{Code: "files", Message: fmt.Sprintf("%d installed files are gone or changed, %s among them", found.DamagedCount, strings.Join(found.Damaged, ", ")),
		Cure: fmt.Sprintf("warmd runtime rm %s, then add it again", m.Name)}
	if m.Adopted {
		f.Cure = "install those packages again with the tool that made the venv"
	}
	return []Finding{f}
}

// adoptedFindings is what a venv may lack and still work; an adopted one is told
// so when it is added, because it is not changed.
func adoptedFindings(m Manifest, found inspection) []Finding {
	out := checkBytecode(m, found)
	if len(found.NoTracing) > 0 {
		out = append(out, noTracing(m, found))
	}
	return out
}

func checkProfile(m Manifest) []Finding {
	bad := func(format string, args ...any) []Finding {
		return []Finding{{Code: "profile", Message: fmt.Sprintf(format, args...) + ": starts are slower than they need be",
			Cure: fixHint(m) + " rehearses it again", Fixable: true}}
	}
	raw, err := os.ReadFile(m.Path(m.Profile))
	if err != nil || m.Profile == "" {
		return bad("no import profile (%v)", errText(err))
	}
	var p struct {
		Version string   `json:"version"`
		Modules []string `json:"modules"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return bad("the import profile is damaged (%v)", err)
	}
	if v, _, _ := strings.Cut(p.Version, "+"); v != m.Version {
		return bad("the import profile is of vLLM %s", p.Version)
	}
	if len(p.Modules) == 0 {
		return bad("the import profile is empty")
	}
	return nil
}

// checkCaches looks for what the rehearsal leaves. An empty one costs the next
// start 20 s of a subprocess that imports everything.
func checkCaches(m Manifest) []Finding {
	root := m.Env["VLLM_CACHE_ROOT"]
	if root == "" {
		return nil
	}
	if files, err := filepath.Glob(filepath.Join(root, "modelinfos", "*.json")); err == nil && len(files) > 0 {
		return nil
	}
	return []Finding{{Code: "caches", Message: "vLLM's cache of model classes is empty: the first start takes 20 s longer",
		Cure: fixHint(m) + " rehearses it again", Fixable: true}}
}

func checkExec(m Manifest) []Finding {
	var out []Finding
	for code, file := range map[string]string{"program": m.Command[0], "python": m.Python} {
		if fi, err := os.Stat(file); err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
			out = append(out, Finding{Code: code, Message: file + " cannot be run",
				Cure: fmt.Sprintf("install it again, or warmd runtime rm %s and add it with another command", m.Name)})
		}
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Code, b.Code) })
	return out
}

func fixHint(m Manifest) string { return fmt.Sprintf("`warmd runtime check %s --fix`", m.Name) }

func errText(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// Fix does what the findings of Check allow: bytecode, a new rehearsal, a new key.
// It returns the runtime as it is afterwards. An adopted venv is never changed.
func Fix(ctx context.Context, m Manifest, findings []Finding, to func(Step)) (Manifest, error) {
	report := newProgress(to)
	unlock, err := lockName(m.Root, m.Name)
	if err != nil {
		return m, err
	}
	defer unlock()
	defer readable()()
	has := func(codes ...string) bool {
		return slices.ContainsFunc(findings, func(f Finding) bool { return f.Fixable && slices.Contains(codes, f.Code) })
	}
	if has("bytecode") {
		report.say("bytecode", "compiling bytecode")
		c := command{env: installEnv(os.Environ()), log: filepath.Join(m.Dir, "fix.log")}
		if err := compileBytecode(ctx, c, m.Python, filepath.Join(m.Dir, venvDir, "lib")); err != nil {
			return m, fmt.Errorf("fix runtime %s: %w", m.Name, err)
		}
	}
	if has("owner") {
		report.say("owner", "giving the caches to user %s", engineUser)
		if err := giveCaches(m.Dir); err != nil {
			return m, fmt.Errorf("fix runtime %s: %w", m.Name, err)
		}
	}
	if !has("profile", "environment", "profile_key", "caches") {
		return m, nil
	}
	a := &adder{opts: AddOptions{Name: m.Name}, dir: m.Dir, work: filepath.Join(m.Dir, workDir), report: report}
	if err := os.MkdirAll(a.work, 0o755); err != nil {
		return m, fmt.Errorf("fix runtime %s: %w", m.Name, err)
	}
	found, err := inspect(ctx, m.Python)
	if err != nil {
		return m, fmt.Errorf("fix runtime %s: %w", m.Name, err)
	}
	found.fill(&m)
	env := lackingEnv(m)
	maps.Copy(env, m.Env)
	m.Env = env
	m.ImportEnv = importEnv(m.Env)
	m.ProfileKey = ProfileKeyOf(m)
	m.Profile, m.Model = profileFile, modelDir
	if err := makeCaches(m.Env, m.Dir); err != nil {
		return m, err
	}
	if err := a.rehearse(ctx, m); err != nil {
		return m, fmt.Errorf("fix runtime %s: %w", m.Name, err)
	}
	return m, a.commit(&m)
}
