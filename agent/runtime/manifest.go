package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The kinds of a runtime.
const (
	KindVLLM = "vllm" // parked: a zygote forks warm workers
	KindExec = "exec" // any command with {port} and {model}: no warm stage
)

// The files of a runtime's folder.
const (
	manifestFile = "runtime.json"
	profileFile  = "profile.json"
	venvDir      = "venv"
	cacheDir     = "cache"
	modelDir     = "model"
)

// Manifest is runtime.json: what is installed and with which environment it runs.
// Go writes it, the Python side reads it.
type Manifest struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Engine  string `json:"engine,omitempty"`
	Version string `json:"version,omitempty"`
	// Python is the interpreter of the engine, absolute.
	Python        string `json:"python,omitempty"`
	PythonVersion string `json:"python_version,omitempty"`
	TorchVersion  string `json:"torch_version,omitempty"`
	// Plugins lists the engine's plugins as group:name; they are loaded at import.
	Plugins []string `json:"plugins,omitempty"`
	Device  string   `json:"device,omitempty"` // cpu, cuda; exec runtimes may leave it empty
	// Env is the whole environment of the zygote and of a cold start alike.
	Env map[string]string `json:"env"`
	// ImportEnv is the part of Env that is fixed once the engine is imported.
	ImportEnv map[string]string `json:"import_env,omitempty"`
	// ProfileKey is the sha256 over versions, ImportEnv and plugins.
	ProfileKey string `json:"profile_key,omitempty"`
	// Profile is the import profile's file, relative to Dir.
	Profile string `json:"profile,omitempty"`
	// Model is the rehearsal's tiny model, relative to Dir.
	Model string `json:"model,omitempty"`
	// Command of an exec runtime, with {host}, {port}, {model} and {name} in it.
	Command []string `json:"command,omitempty"`
	// Adopted says that the venv was there before and is not ours to change.
	Adopted bool      `json:"adopted,omitempty"`
	Created time.Time `json:"created"`
	// Dir is the runtime's folder, links followed: Env names it the same way.
	Dir string `json:"-"`
	// Root is the folder of runtimes that it was found in.
	Root string `json:"-"`
}

// Problem is something in the runtimes' folder that is not a usable runtime.
type Problem struct {
	Name    string `json:"name"`
	Dir     string `json:"dir"`
	Message string `json:"message"`
	Cure    string `json:"cure"` // what to do about it
}

func (p Problem) Error() string { return p.Name + ": " + p.Message + " (" + p.Cure + ")" }

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// CheckName reports whether a name can name a runtime: it becomes a folder and a
// part of a systemd unit's name.
func CheckName(name string) error {
	if !nameRE.MatchString(name) || strings.Contains(name, "..") {
		return fmt.Errorf("check runtime name: %q must match %s, without \"..\"", name, nameRE)
	}
	return nil
}

// DefaultRoot is where runtimes are kept when nobody says otherwise. The rule, in
// this order:
//
//	$WARMD_RUNTIMES               for whoever sets it: the packaged unit, tests
//	/var/lib/warmd/runtimes       for root: the packaged service's state folder
//	$XDG_DATA_HOME/warmd/runtimes for everybody else (~/.local/share when unset)
func DefaultRoot() string {
	if d := os.Getenv("WARMD_RUNTIMES"); d != "" {
		return d
	}
	if os.Geteuid() == 0 {
		return "/var/lib/warmd/runtimes"
	}
	data := os.Getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(data) { // the XDG specification: a relative one is to be ignored
		home, err := os.UserHomeDir()
		if err != nil {
			home = os.TempDir()
		}
		data = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(data, "warmd", "runtimes")
}

// Load reads the manifest of a runtime's folder and checks that it is whole. The
// error is a [Problem].
func Load(dir string) (Manifest, error) {
	name := filepath.Base(dir)
	problem := func(cure, format string, args ...any) (Manifest, error) {
		return Manifest{}, Problem{Name: name, Dir: dir, Message: fmt.Sprintf(format, args...), Cure: cure}
	}
	again := fmt.Sprintf("warmd runtime rm %s, then add it again", name)
	raw, err := os.ReadFile(filepath.Join(dir, manifestFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return problem(fmt.Sprintf("run the same `warmd runtime add %s` again, or warmd runtime rm %s", name, name), "no %s: adding it was not finished", manifestFile)
	case err != nil:
		return problem("make the folder readable for this user", "read manifest: %v", err)
	}
	var m Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return problem(again, "%s is damaged: %v", manifestFile, err)
	}
	m.Root = filepath.Dir(dir)
	if m.Dir, err = filepath.EvalSymlinks(dir); err != nil {
		return problem("make the folder readable for this user", "follow links: %v", err)
	}
	if err := m.validate(name); err != nil {
		return problem(again, "%s is damaged: %v", manifestFile, err)
	}
	for k := range m.Env {
		if w := Sealed(k); w != "" {
			return problem("take it out of "+filepath.Join(dir, manifestFile), "its environment has %s, which is never set: %s", k, w)
		}
	}
	return m, nil
}

func (m Manifest) validate(folder string) error {
	switch {
	case m.Name != folder:
		return fmt.Errorf("names runtime %q, the folder is %q", m.Name, folder)
	case CheckName(m.Name) != nil:
		return CheckName(m.Name)
	case m.Kind == KindExec && len(m.Command) == 0:
		return errors.New("kind exec without a command")
	case m.Kind == KindVLLM && !filepath.IsAbs(m.Python):
		return fmt.Errorf("python %q is not an absolute path", m.Python)
	case m.Kind == KindVLLM && m.Device != "cpu" && m.Device != "cuda":
		return fmt.Errorf("device %q is neither cpu nor cuda", m.Device)
	case m.Kind != KindExec && m.Kind != KindVLLM:
		return fmt.Errorf("unknown kind %q", m.Kind)
	}
	return nil
}

// List reads every runtime under root, sorted by name. What is there but is no
// runtime comes back as a Problem; only an unreadable root is an error. A root
// that does not exist holds no runtime.
func List(root string) ([]Manifest, []Problem, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list runtimes: %w", err)
	}
	var have []Manifest
	var bad []Problem
	for _, e := range entries { // ReadDir sorts
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		dir := filepath.Join(root, e.Name())
		if fi, err := os.Stat(dir); err == nil && !fi.IsDir() {
			continue // a stray file is nobody's runtime
		}
		m, err := Load(dir)
		if p, ok := errors.AsType[Problem](err); ok {
			bad = append(bad, p)
			continue
		}
		have = append(have, m)
	}
	return have, bad, nil
}

// Interpreter is the Python that zygotes of this runtime run on. An exec runtime need
// not have one of its own.
func (m Manifest) Interpreter() string {
	if m.Python != "" {
		return m.Python
	}
	if path, err := exec.LookPath("python3"); err == nil {
		return path
	}
	return "python3"
}

// Environ is Env as a process takes it, sorted, without what is never set.
func (m Manifest) Environ() []string {
	out := make([]string, 0, len(m.Env))
	for k, v := range m.Env {
		if Sealed(k) == "" {
			out = append(out, k+"="+v)
		}
	}
	slices.Sort(out)
	return out
}

// Path makes a file name of the manifest absolute.
func (m Manifest) Path(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(m.Dir, name)
}

// save writes the manifest whole or not at all: List must never see half of it.
func (m Manifest) save(file string) error {
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	return writeWhole(file, append(raw, '\n'), 0o644)
}
