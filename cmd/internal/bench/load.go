package bench

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// Host is the machine that was measured.
type Host struct {
	CPUs   int    `json:"cpus"`
	CPU    string `json:"cpu,omitempty"`
	Memory int64  `json:"memory_bytes,omitempty"`
	Kernel string `json:"kernel,omitempty"`
	// Load1 is the load average before the first start.
	Load1 float64 `json:"load1_before"`
}

// Load1 is the machine's load average of the last minute.
func Load1() (l float64) {
	b, _ := os.ReadFile("/proc/loadavg")
	_, _ = fmt.Sscan(string(b), &l)
	return l
}

// Busy says that the machine had other work when the run began, empty when it had not.
func (h Host) Busy() string {
	if h.Load1 <= float64(h.CPUs)/2 {
		return ""
	}
	return fmt.Sprintf("the machine was busy before the run began: load %.1f on %d cores; these figures are not for the record", h.Load1, h.CPUs)
}

// ThisHost looks at the machine.
func ThisHost() Host {
	h := Host{CPUs: runtime.NumCPU(), Load1: Load1(), CPU: field("/proc/cpuinfo", "model name"), Memory: memory("MemTotal")}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		h.Kernel = strings.TrimSpace(string(b))
	}
	return h
}

// memory reads a line of /proc/meminfo, in bytes.
func memory(name string) (n int64) {
	_, _ = fmt.Sscan(field("/proc/meminfo", name), &n)
	return n << 10
}

// field is the value of the first line "name: value" of a file of /proc.
func field(file, name string) string {
	raw, _ := os.ReadFile(file)
	for line := range strings.Lines(string(raw)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
