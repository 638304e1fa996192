package worker

import (
	"bytes"
	"os"
	"strconv"
	"time"
)

// Every process that a zygote starts leads a session of its own, so a worker's
// grandchildren are the members of that session. A member keeps the session's
// number from being reused as a pid; hence, while a process with that pid but
// another start time lives, the old session has no members left.

// sessionMembers lists the living processes that belong to the session led by
// root: the leader itself, its session and group, and all descendants of the
// living leader (one that made a session of its own is still found while its
// parents live).
func sessionMembers(root Proc) []Proc {
	all := readAll()
	if s, ok := all[root.PID]; ok && s.start != root.Start {
		return nil
	}
	var found []Proc
	for pid, s := range all {
		if s.ended() || !(pid == root.PID || s.session == root.PID || s.pgrp == root.PID || descends(all, pid, root.PID)) {
			continue
		}
		found = append(found, Proc{pid, s.start})
	}
	return found
}

// descends follows the parents of pid, at most as many as there are processes.
func descends(all map[int]stat, pid, root int) bool {
	for range all {
		s, ok := all[pid]
		if !ok || s.ppid <= 1 {
			return false
		}
		if s.ppid == root {
			return true
		}
		pid = s.ppid
	}
	return false
}

func readAll() map[int]stat {
	all := map[int]stat{}
	dir, err := os.Open("/proc")
	if err != nil {
		return all
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if s, ok := readStat(pid); ok {
				all[pid] = s
			}
		}
	}
	return all
}

// listener finds a zygote by its command line: it holds --socket PATH from the
// moment it runs, long before it listens or has been asked for its pid.
func listener(socket string) (Proc, bool) {
	if ps := withSocket(socket + "\x00"); len(ps) > 0 {
		return ps[0], true
	}
	return Proc{}, false
}

// withSocket lists the processes whose --socket begins with a prefix.
func withSocket(prefix string) (ps []Proc) {
	want := []byte("\x00--socket\x00" + prefix)
	for pid, s := range readAll() {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if err == nil && !s.ended() && bytes.Contains(append(b, 0), want) {
			ps = append(ps, Proc{pid, s.start})
		}
	}
	return ps
}

// isTracker recognises Python's own helper that unlinks a dead worker's shared
// memory and then ends by itself: killing it at once would leave segments in
// /dev/shm for ever.
func isTracker(p Proc) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/cmdline")
	return err == nil && bytes.Contains(b, []byte("multiprocessing.resource_tracker"))
}

// Stats is what a worker uses, all of its processes together.
type Stats struct {
	RSSBytes   int64         `json:"rss_bytes"`
	CPU        time.Duration `json:"cpu"`
	Threads    int           `json:"threads"`
	Processes  int           `json:"processes"`
	MeasuredAt time.Time     `json:"measured_at"`
}

// usage adds up the sessions of roots. It reads /proc and asks nobody: a busy or
// stopped engine answers as well as an idle one.
func usage(roots ...Proc) Stats {
	const ticksPerSecond = 100 // USER_HZ: fixed by the kernel's interface to user space
	out, page := Stats{MeasuredAt: time.Now()}, int64(os.Getpagesize())
	for _, root := range roots {
		for _, p := range sessionMembers(root) {
			s, ok := readStat(p.PID)
			if !ok || s.start != p.Start {
				continue
			}
			out.RSSBytes += int64(s.rss) * page
			out.CPU += time.Duration(s.cpuTicks) * time.Second / ticksPerSecond
			out.Threads += s.threads
			out.Processes++
		}
	}
	return out
}
