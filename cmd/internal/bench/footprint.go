package bench

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Footprint is what an agent, its zygotes and their workers hold of a host.
type Footprint struct {
	Processes  int   `json:"processes"`
	AgentFDs   int   `json:"agent_fds"`
	ZygoteFDs  int   `json:"zygote_fds"`
	AgentRSS   int64 `json:"agent_rss_bytes"`
	ZygoteRSS  int64 `json:"zygote_rss_bytes"`
	DeviceFree int64 `json:"device_free_bytes"`
	// Shared are the segments in /dev/shm of the users that run them, Sockets the socket
	// files below the run folder, and in the zygotes' /tmp, which may be private to them.
	Shared  []string `json:"shared_memory"`
	Sockets []string `json:"sockets"`

	quarantined int
}

func (w *watch) footprint(ctx context.Context) (Footprint, error) {
	n, err := w.agent.Node(ctx)
	if err != nil {
		return Footprint{}, fmt.Errorf("look at the node: %w", err)
	}
	f := Footprint{AgentFDs: fds(n.PID), AgentRSS: resident(n.PID), Shared: []string{}, Sockets: sockets(n.RunDir)}
	roots, users := []int{n.PID}, map[uint32]bool{owner(n.PID): true}
	for _, z := range n.Zygotes {
		f.ZygoteFDs += fds(z.PID)
		f.ZygoteRSS += resident(z.PID)
		roots, users[owner(z.PID)] = append(roots, z.PID), true
		f.Sockets = append(f.Sockets, temporary(fmt.Sprintf("/proc/%d/root/tmp", z.PID), owner(z.PID))...)
	}
	slices.Sort(f.Sockets)
	f.Sockets = slices.Compact(f.Sockets) // zygotes may have one /tmp
	for _, d := range n.Capacity.Devices {
		f.DeviceFree += d.FreeBytes
		f.quarantined += d.Quarantined
	}
	f.Processes = w.count(roots)
	entries, _ := os.ReadDir("/dev/shm")
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			if st, ok := fi.Sys().(*syscall.Stat_t); ok && users[st.Uid] {
				f.Shared = append(f.Shared, e.Name())
			}
		}
	}
	return f, nil
}

// count counts the processes that descend from one of the roots or are of a session
// that a worker had, the roots included.
func (w *watch) count(roots []int) int {
	all := map[int]process{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			if p, ok := readProcess(pid); ok {
				all[pid] = p
			}
		}
	}
	n := 0
	for pid, p := range all {
		ours := w.sessions[p.session]
		for at, hops := pid, 0; !ours && at > 1 && hops < 64; hops++ {
			ours = slices.Contains(roots, at)
			at = all[at].parent
		}
		if ours {
			n++
		}
	}
	return n
}

type process struct{ parent, session int }

// readProcess is false for what is gone, or dead with its last thread and only not
// waited for yet.
func readProcess(pid int) (p process, ok bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if err != nil || len(f) < 18 || f[0] == "Z" && f[17] == "1" {
		return p, false
	}
	p.parent, _ = strconv.Atoi(f[1])
	p.session, _ = strconv.Atoi(f[3])
	return p, true
}

func fds(pid int) int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries)
}

func resident(pid int) int64 {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	f := strings.Fields(string(raw))
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.ParseInt(f[1], 10, 64)
	return n * int64(os.Getpagesize())
}

func owner(pid int) uint32 {
	var st syscall.Stat_t
	if syscall.Stat(fmt.Sprintf("/proc/%d", pid), &st) != nil {
		return ^uint32(0)
	}
	return st.Uid
}

func sockets(dir string) []string {
	out := []string{}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSocket != 0 {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, rel)
		}
		return nil
	})
	return out
}

// temporary lists a user's sockets in a folder for temporary files and in those of its
// folders that are a worker's.
func temporary(dir string, user uint32) (out []string) {
	for _, pattern := range []string{"*", "warmd-*/*"} {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, path := range paths {
			var st syscall.Stat_t
			if syscall.Lstat(path, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFSOCK && st.Uid == user {
				rel, _ := filepath.Rel(filepath.Dir(dir), path)
				out = append(out, rel)
			}
		}
	}
	return out
}
