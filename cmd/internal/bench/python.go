package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"warmd/placement"
)

// Runtime is the part of a runtime's runtime.json that a plain start needs.
type Runtime struct {
	Name    string            `json:"name"`
	Kind    string            `json:"kind"`
	Version string            `json:"version"`
	Device  string            `json:"device"`
	Python  string            `json:"python"`
	Env     map[string]string `json:"env"`
	Dir     string            `json:"-"`
}

// LoadRuntime reads the manifest of a runtime of this host.
func LoadRuntime(root, name string) (Runtime, error) {
	r := Runtime{Name: name, Dir: filepath.Join(root, name)}
	b, err := os.ReadFile(filepath.Join(r.Dir, "runtime.json"))
	if err != nil {
		return r, placement.Errorf(placement.CodeUnknownRuntime, "read runtime %s: %v", name, err).
			WithHint("`warmd runtime ls --root %s` lists what is there", root)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("decode runtime %s: %w", name, err)
	}
	return r, nil
}

// Python is what an interpreter says about the packages that a start imports.
type Python struct {
	// Packages are those whose import is most of a start.
	Packages []Package `json:"packages"`
	// Paths are the folders that modules are imported from.
	Paths []string `json:"paths"`
	// WritesBytecode is false where a start would compile again what is missing.
	WritesBytecode bool `json:"writes_bytecode"`
}

// Package is one package, where the interpreter really finds it: a venv may have it
// by a .pth file from another folder.
type Package struct {
	Name       string `json:"name"`
	Dir        string `json:"dir"`
	Sources    int    `json:"sources"`    // .py files
	Uncompiled int    `json:"uncompiled"` // those of them without bytecode
}

const inspectPython = `
import importlib.util as u, json, os, sys
packages = []
for name in ("vllm", "torch", "transformers"):
    s = u.find_spec(name)
    if s is None or not s.submodule_search_locations:
        continue
    p = dict(name=name, dir=list(s.submodule_search_locations)[0], sources=0, uncompiled=0)
    for root, dirs, files in os.walk(p["dir"]):
        for f in files:
            if f.endswith(".py"):
                p["sources"] += 1
                p["uncompiled"] += not os.path.exists(u.cache_from_source(os.path.join(root, f)))
    packages.append(p)
print(json.dumps(dict(packages=packages, paths=[p for p in sys.path if os.path.isdir(p)], writes_bytecode=not sys.dont_write_bytecode)))
`

// AskPython asks a runtime's interpreter, in the environment of its starts.
func AskPython(ctx context.Context, r Runtime) (Python, error) {
	var p Python
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Python, "-c", inspectPython)
	cmd.Dir = "/" // a folder named vllm in the working directory is not the engine
	for k, v := range r.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, lastLine(exit.Stderr))
		}
		return p, fmt.Errorf("inspect %s: %w", r.Python, err)
	}
	if err := json.Unmarshal(out, &p); err != nil {
		return p, fmt.Errorf("inspect %s: %w", r.Python, err)
	}
	return p, nil
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// Compiled refuses a runtime whose sources have no bytecode: every plain start would
// compile 20,000 files, and the comparison would flatter us. One file in twenty may
// lack it: some are for other versions of Python.
func (p Python) Compiled(r Runtime) error {
	if len(p.Packages) == 0 || p.Packages[0].Name != "vllm" {
		return placement.Errorf(placement.CodeBadRequest, "check runtime %s: %s finds no package vllm", r.Name, r.Python).
			WithHint("`warmd runtime check %s` says what is wrong with it", r.Name)
	}
	var bad []string
	for _, k := range p.Packages {
		if k.Uncompiled*20 > k.Sources {
			bad = append(bad, fmt.Sprintf("%d of %d files of %s in %s", k.Uncompiled, k.Sources, k.Name, k.Dir))
		}
	}
	if len(bad) == 0 && p.WritesBytecode {
		return nil
	}
	e := placement.Errorf(placement.CodeBadRequest, "check runtime %s: no compiled bytecode for %s, so a plain start would look slower than it is", r.Name, strings.Join(bad, ", ")).
		WithHint("`warmd runtime check %s --fix`, or in a venv that is not warmd's: %s -m compileall -q -j 0 FOLDER", r.Name, r.Python)
	if len(bad) == 0 {
		e.Message = fmt.Sprintf("check runtime %s: its environment sets PYTHONDONTWRITEBYTECODE, so a plain start would look slower than it is", r.Name)
		e.Hint = "take it out of the env in " + filepath.Join(r.Dir, "runtime.json")
	}
	return e
}
