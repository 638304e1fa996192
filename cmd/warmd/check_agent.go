package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"warmd/agent"
	"warmd/agent/api/access"
	"warmd/agent/runtime"
)

// checkAgent looks at everything that an agent's configuration names on this host.
func checkAgent(r *report, cfg agent.Config) {
	r.fact("node", "%s", cfg.Node)
	r.tls("tls.", cfg.TLS, cfg.Node, access.UnitAgent)
	for i, a := range cfg.Listen {
		r.local(fmt.Sprintf("listen[%d]", i), a)
	}
	r.local("endpoint_host", cfg.EndpointHost)
	r.gossip(cfg.Gossip)
	r.groups(cfg.Access)
	r.socket(cfg.Socket)
	for _, d := range []struct{ key, dir string }{{"data_dir", cfg.DataDir}, {"run_dir", cfg.RunDir}, {"log_dir", cfg.LogDir}} {
		r.madeOrFolder(d.key, d.dir)
	}
	r.modelRoots(cfg.ModelRoots)
	r.runtimes(cfg.RuntimesDir)
	if cfg.NVMLLibrary != "" {
		if _, err := os.Stat(cfg.NVMLLibrary); err != nil {
			r.problem("nvml_library", "%v", err)
		}
	}
	if cfg.ScriptDir != "" {
		if _, err := os.Stat(cfg.ScriptDir); err != nil {
			r.warning("script_dir: %v: the agent unpacks its own Python side", err)
		}
	}
	if _, err := os.Stat("/run/systemd/system"); cfg.Launcher == agent.LaunchSystemd && err != nil {
		r.problem("launcher", "is systemd, which does not run here")
	}
}

// modelRoots must be there for engines, too.
func (r *report) modelRoots(roots []string) {
	if len(roots) == 0 {
		r.fact("model_roots", "none: every model is refused")
	}
	for i, root := range roots {
		key := fmt.Sprintf("model_roots[%d]", i)
		entries, err := os.ReadDir(root)
		if err != nil {
			r.problem(key, "%v", err)
			continue
		}
		models := 0
		for _, e := range entries {
			if _, err := os.Stat(filepath.Join(root, e.Name(), "config.json")); err == nil {
				models++
			}
		}
		r.readable(key, root)
		if r.service != nil {
			r.readableBy(findAccount("warmd-engine"), key, root)
		}
		r.fact("model_roots", "%s: %s", root, plural(models, "model"))
	}
}

func (r *report) runtimes(dir string) {
	have, broken, err := runtime.List(dir)
	if err != nil {
		r.problem("runtimes_dir", "%v", err)
		return
	}
	for _, p := range broken {
		r.problem("runtimes_dir", "%s holds a runtime that cannot be used: %v", dir, p)
	}
	var names []string
	for _, m := range have {
		names = append(names, strings.TrimSpace(m.Name+" ("+strings.TrimSpace(m.Kind+" "+m.Version+" "+m.Device)+")"))
	}
	if len(names) == 0 {
		names = []string{"none yet: warmd runtime add NAME --vllm VERSION --device cpu|cuda"}
	}
	r.fact("runtimes", "%s", strings.Join(names, ", "))
	r.readable("runtimes_dir", dir)
}

// socket is taken over from a dead agent, not from a living one or from a file.
func (r *report) socket(path string) {
	fi, err := os.Lstat(path)
	switch {
	case path == "" || errors.Is(err, os.ErrNotExist):
		return
	case err != nil:
		r.problem("socket", "%v", err)
	case fi.Mode()&os.ModeSocket == 0:
		r.problem("socket", "%s is there and is not a socket: move it away", path)
	default:
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = c.Close()
			r.fact("socket", "%s, somebody answers there: this service, if it runs", path)
		}
	}
}

// madeOrFolder checks a folder that is made when it is missing.
func (r *report) madeOrFolder(key, dir string) {
	if fi, err := os.Stat(dir); err == nil && !fi.IsDir() {
		r.problem(key, "%s is there and is not a folder", dir)
	}
}
