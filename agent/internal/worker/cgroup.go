package worker

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// Under systemd a zygote gives each worker a cgroup of its own (cgroup.py). What is in
// it is the worker, also a grandchild with a session of its own whose parents are gone,
// which nothing else leads to.

// cgroupMount is where the cgroup v2 hierarchy is mounted, "" where there is none.
var cgroupMount = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && len(f) > 4 {
			return f[4]
		}
	}
	return ""
})

// cgroupOf is the folder of the worker's own cgroup, as one of its living processes
// shows it; "" when the worker has none.
func cgroupOf(p Proc, worker string) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/cgroup")
	if err != nil || cgroupMount() == "" || !p.Alive() {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if ok && filepath.Base(path) == "worker-"+worker {
			return filepath.Join(cgroupMount(), path)
		}
	}
	return ""
}

// cgroupMembers lists the living processes of a cgroup and of those below it.
func cgroupMembers(dir string) (ps []Proc) {
	if dir == "" {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // it was removed while we looked: nobody is in there
		}
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(pid); err == nil {
				if p, ok := FindProc(n); ok {
					ps = append(ps, p)
				}
			}
		}
		return nil
	})
	return ps
}
