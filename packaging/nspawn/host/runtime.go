package host

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// RuntimeBinds are the folders of the machine that make one of its runtimes appear
// on a host: the runtime's own, in which the host may write, and the Python that its
// virtual environment is made of. Both keep their paths: what is in there knows them.
func RuntimeBinds(dir string) ([]Bind, error) {
	python, err := filepath.EvalSymlinks(filepath.Join(dir, "venv", "bin", "python"))
	if err != nil {
		return nil, fmt.Errorf("bind runtime: %w (`make runtimes` installs it)", err)
	}
	binds := []Bind{{From: dir, To: dir, Scratch: true}}
	if base := filepath.Dir(filepath.Dir(python)); base != "/usr" { // the host has its own
		binds = append(binds, Bind{From: base, To: base})
	}
	return binds, nil
}

// AdoptRuntime makes a runtime that was bound known to the host's agent, and lets
// engines reach it and write into its caches. It is for a host with warmd installed.
func (h *Host) AdoptRuntime(t testing.TB, dir string) {
	t.Helper()
	for d := filepath.Dir(dir); d != "/"; d = filepath.Dir(d) {
		h.Run(t, "chmod a+x "+d)
	}
	h.Run(t, "chown -R warmd-engine "+dir+"/cache && ln -s "+dir+" /var/lib/warmd/runtimes/")
	h.Write(t, "/etc/systemd/system/warmd-runtime@.service.d/runtime.conf", "[Service]\nReadWritePaths="+dir+"/cache\n", os.FileMode(0o644))
	h.Run(t, "systemctl daemon-reload")
}
