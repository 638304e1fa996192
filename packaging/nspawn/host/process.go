package host

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Process is a process of a host as the machine sees it: with the machine's pid,
// and without asking anybody on the host, whose agent may be the one under test.
// Pid and Start together name it for as long as the machine is up.
type Process struct {
	Pid    int
	Start  uint64
	Cgroup string // as the host sees it
	Args   []string
}

func (p Process) String() string {
	return fmt.Sprintf("%d (start %d, %s) %s", p.Pid, p.Start, p.Cgroup, strings.Join(p.Args, " "))
}

// RSS is the memory that the process has for itself, in KiB.
func (p Process) RSS() (kib int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			kib, _ = strconv.Atoi(f[1])
		}
	}
	return kib
}

// Processes lists those processes of the host that match, zombies left out.
func (h *Host) Processes(t testing.TB, match func(Process) bool) []Process {
	t.Helper()
	var all []Process
	payload := filepath.Join(h.cgroup, "payload")
	err := filepath.WalkDir(payload, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // a cgroup comes and goes
		}
		pids, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for word := range strings.FieldsSeq(string(pids)) {
			p, ok := readProcess(word)
			p.Cgroup = "/" + strings.TrimPrefix(strings.TrimPrefix(dir, payload), "/")
			if ok && match(p) {
				all = append(all, p)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func readProcess(pid string) (p Process, ok bool) {
	line, err := os.ReadFile("/proc/" + pid + "/cmdline")
	if err != nil || len(line) == 0 {
		return p, false
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return p, false
	}
	// The name may hold anything; what follows it begins with field 3, the state.
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	p.Pid, _ = strconv.Atoi(pid)
	p.Start, err = strconv.ParseUint(f[19], 10, 64)
	p.Args = strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	return p, err == nil && f[0] != "Z"
}
