package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// memoryRoot is the machine's memory controller of cgroup v1. Hosts have none of
// their own: with it beside v2, their processes can still be limited from outside.
const memoryRoot = "/sys/fs/cgroup/memory"

// memoryCgroup is where a run limits memory.
func memoryCgroup(id string) string { return filepath.Join(memoryRoot, "warmd-hosts", id) }

// Starve gives a process no more memory from now on, so that the kernel's
// memory-killer takes it when it next needs some, and nobody else.
func (h *Host) Starve(t testing.TB, p Process) {
	t.Helper()
	const little = "4096" // it keeps what it has
	if _, err := os.Stat(memoryRoot + "/cgroup.procs"); errors.Is(err, os.ErrNotExist) {
		// The machine has v2 alone: the process's own cgroup has the limit.
		at := filepath.Join(h.cgroup, "payload", p.Cgroup, "memory.max")
		if err := os.WriteFile(at, []byte(little), 0); err != nil {
			t.Fatalf("%s: limit memory: %v", h.Name, err)
		}
		return
	}
	dir := filepath.Join(memoryCgroup(h.lab.id), fmt.Sprintf("%s-%d", h.Name, p.Pid))
	err := os.MkdirAll(dir, 0o755)
	t.Cleanup(func() { // once the process is gone
		for end := time.Now().Add(5 * time.Second); os.Remove(dir) != nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
	})
	for _, w := range []struct{ file, value string }{{"memory.limit_in_bytes", little}, {"cgroup.procs", strconv.Itoa(p.Pid)}} {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, w.file), []byte(w.value), 0)
		}
	}
	if err != nil {
		t.Fatalf("%s: limit memory: %v", h.Name, err)
	}
}
