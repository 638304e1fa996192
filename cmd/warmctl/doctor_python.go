package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// host is this machine as doctor sees it. root is "/" but in tests.
type host struct {
	root   string
	getenv func(string) string
	now    func() time.Time
	me     account
	// keptClock says whether something synchronises the clock.
	keptClock func() (bool, error)
}

// path is a path on the host.
func (h host) path(p string) string { return filepath.Join(h.root, p) }

// look finds a program in PATH.
func (h host) look(name string) string {
	for _, dir := range filepath.SplitList(h.getenv("PATH")) {
		path := h.path(filepath.Join(dir, name))
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

var pythonVersion = regexp.MustCompile(`Python 3\.(\d+)\.`)

// The Python versions that vLLM has wheels for.
var pythons = []string{"python3.13", "python3.12", "python3.11", "python3.10"}

// checkPython looks for an interpreter that vLLM installs on.
func (h host) checkPython(ctx context.Context) []finding {
	var out []finding
	uv := h.look("uv")
	found := ""
	for _, name := range pythons {
		if found = h.look(name); found != "" {
			break
		}
	}
	if found == "" {
		// Only a bare python3 has to be asked which one it is.
		if p := h.look("python3"); p != "" {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			said, _ := exec.CommandContext(ctx, p, "--version").CombinedOutput()
			if m := pythonVersion.FindSubmatch(said); m != nil && len(m[1]) == 2 && string(m[1]) >= "10" && string(m[1]) <= "13" {
				found = p
			}
		}
	}
	switch {
	case found != "":
		out = append(out, finding{"python", fine, found, ""})
	case uv != "":
		out = append(out, finding{"python", warn, "no Python 3.10 to 3.13 here", "uv can fetch one: uv python install 3.12"})
	default:
		out = append(out, finding{"python", broken, "no Python 3.10 to 3.13 and no uv in PATH", "install python3.12 with its venv package, or uv"})
	}
	if uv == "" {
		out = append(out, finding{"uv", warn, "uv is not in PATH: `warmd runtime add` fetches one, with Python's venv module", "apt install python3-venv, install uv, or adopt a venv with warmd runtime add NAME --python PATH"})
	}
	if h.getenv("PYTHONDONTWRITEBYTECODE") != "" {
		out = append(out, finding{"python", warn, "PYTHONDONTWRITEBYTECODE is set: every import compiles again, which doubles a cold start", "unset PYTHONDONTWRITEBYTECODE"})
	}
	return out
}

// runtimesDir is the rule of `warmd runtime`: $WARMD_RUNTIMES, the service's
// folder for root, the user's data folder for everybody else. But a user who has
// none on a host that has the service asks about the service's.
func (h host) runtimesDir() string {
	if dir := h.getenv("WARMD_RUNTIMES"); dir != "" {
		return dir
	}
	const ofService = "/var/lib/warmd/runtimes"
	if h.me.uid == 0 {
		return ofService
	}
	data := h.getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(data) {
		data = filepath.Join(h.getenv("HOME"), ".local/share")
	}
	own := filepath.Join(data, "warmd/runtimes")
	if !exists(h.path(own)) && exists(h.path(ofService)) {
		return ofService
	}
	return own
}

// checkRuntimes reads the manifests and checks what they name. It sees only
// files: `warmd runtime check` also runs the engine.
func (h host) checkRuntimes(dir string) []finding {
	const add = "warmd runtime add NAME --vllm 0.32.0 --device cpu|cuda"
	entries, err := os.ReadDir(h.path(dir))
	switch {
	case os.IsNotExist(err):
		return []finding{{"runtimes", warn, "none installed (no folder " + dir + ")", add}}
	case err != nil:
		return []finding{{"runtimes", broken, err.Error(), "make " + dir + " readable, or name another one with --runtimes"}}
	}
	var out []finding
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		// A runtime that was added with --dir is a link.
		if info, err := os.Stat(h.path(at)); err == nil && info.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			out = append(out, h.checkRuntime(at, e.Name()))
		}
	}
	if len(out) == 0 {
		out = append(out, finding{"runtimes", warn, "none installed in " + dir, add})
	}
	return out
}

func (h host) checkRuntime(dir, name string) finding {
	bad := func(format string, args ...any) finding {
		return finding{"runtime", broken, name + ": " + fmt.Sprintf(format, args...), "warmd runtime check " + name + ", or make it again: warmd runtime rm, warmd runtime add"}
	}
	raw, err := os.ReadFile(h.path(filepath.Join(dir, "runtime.json")))
	if err != nil {
		return bad("%v", err)
	}
	var m struct {
		Kind, Engine, Version, Python, Device, Profile string
		Command                                        []string
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return bad("runtime.json: %v", err)
	}
	if m.Kind == "exec" {
		if len(m.Command) == 0 {
			return bad("kind exec without a command")
		}
		return finding{"runtime", fine, fmt.Sprintf("%s: exec %s", name, strings.Join(m.Command, " ")), ""}
	}
	if info, err := os.Stat(h.path(m.Python)); err != nil || info.Mode()&0o111 == 0 {
		return bad("its python %s cannot be run", m.Python)
	}
	profile := m.Profile
	if profile == "" {
		profile = "profile.json"
	}
	if _, err := os.Stat(h.path(filepath.Join(dir, profile))); err != nil {
		return finding{"runtime", warn, name + ": no import profile: loads import modules while the request waits", "warmd runtime check " + name + " records it"}
	}
	return finding{"runtime", fine, fmt.Sprintf("%s: %s %s for %s", name, m.Engine, m.Version, m.Device), ""}
}
