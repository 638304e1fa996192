package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Proc names one process for as long as the host is up. A pid is reused; a pid
// together with its start time (field 22 of /proc/PID/stat, clock ticks since
// boot) is not.
type Proc struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// ErrGone says that a process is not there any more.
var ErrGone = errors.New("process is gone")

func (p Proc) String() string { return fmt.Sprintf("%d (start %d)", p.PID, p.Start) }

// Alive reports whether exactly this process runs. A zombie does not.
func (p Proc) Alive() bool {
	s, ok := readStat(p.PID)
	return ok && s.start == p.Start && !s.ended()
}

// FindProc names the process that has the pid now.
func FindProc(pid int) (Proc, bool) {
	s, ok := readStat(pid)
	return Proc{pid, s.start}, ok && !s.ended()
}

// Signal sends sig to exactly this process: the pidfd is opened first and the
// start time checked after, so that a successor with the same pid is never hit.
func (p Proc) Signal(sig syscall.Signal) error {
	w, err := p.open()
	if err != nil {
		return err
	}
	defer w.close()
	raw, err := w.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal process %v: %w", p, err)
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return fmt.Errorf("signal process %v: %w", p, err)
	}
	switch {
	case errors.Is(sent, unix.ESRCH):
		return fmt.Errorf("signal process %v: %w", p, ErrGone)
	case sent != nil:
		return fmt.Errorf("signal process %v: %w", p, sent)
	}
	return nil
}

// watch is an open pidfd: it refers to one process even after that has ended.
type watch struct {
	proc Proc
	file *os.File
	once sync.Once
}

// open returns a watch of exactly this process, or ErrGone.
func (p Proc) open() (*watch, error) {
	if p.PID <= 0 {
		return nil, fmt.Errorf("open process %v: %w", p, ErrGone)
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("open process %v: %w", p, ErrGone)
	} else if err != nil {
		return nil, fmt.Errorf("open process %v: %w", p, err)
	}
	// Non-blocking makes the Go poller watch it: no thread waits in the kernel.
	_ = unix.SetNonblock(fd, true)
	w := &watch{proc: p, file: os.NewFile(uintptr(fd), "pidfd")}
	if s, ok := readStat(p.PID); !ok || s.start != p.Start {
		w.close()
		return nil, fmt.Errorf("open process %v: %w", p, ErrGone)
	}
	return w, nil
}

// wait returns nil when the process has ended, or the error of ctx.
func (w *watch) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			_ = w.file.SetReadDeadline(time.Time{})
		}
	}()
	raw, err := w.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process %v: %w", w.proc, err)
	}
	if err := raw.Read(func(fd uintptr) bool { return ended(int(fd)) }); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("wait for process %v: %w", w.proc, err)
	}
	return nil
}

func (w *watch) close() { w.once.Do(func() { _ = w.file.Close() }) }

// ended asks a pidfd without waiting.
func ended(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// stat is what we use of /proc/PID/stat.
type stat struct {
	state                byte
	ppid, pgrp, session  int
	cpuTicks, start, rss uint64 // rss in pages
	threads              int
}

// ended reports whether all of it has ended. The first thread is a zombie before the
// others, and a CUDA context takes them 0.2 s to tear down: until then the device is held.
func (s stat) ended() bool { return (s.state == 'Z' || s.state == 'X') && s.threads <= 1 }

// readStat reports false when there is no such process.
func readStat(pid int) (stat, bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	return parseStat(raw)
}

// parseStat cuts after the last bracket: the command before it may hold spaces
// and brackets of its own.
func parseStat(raw []byte) (s stat, ok bool) {
	cut := bytes.LastIndexByte(raw, ')')
	if cut < 0 {
		return s, false
	}
	f := strings.Fields(string(raw[cut+1:]))
	if len(f) < 22 || len(f[0]) != 1 {
		return s, false
	}
	s.state = f[0][0]
	var errs [8]error
	s.ppid, errs[0] = strconv.Atoi(f[1])
	s.pgrp, errs[1] = strconv.Atoi(f[2])
	s.session, errs[2] = strconv.Atoi(f[3])
	var user, system uint64
	user, errs[3] = strconv.ParseUint(f[11], 10, 64)
	system, errs[4] = strconv.ParseUint(f[12], 10, 64)
	s.threads, errs[5] = strconv.Atoi(f[17])
	s.start, errs[6] = strconv.ParseUint(f[19], 10, 64)
	s.rss, errs[7] = strconv.ParseUint(f[21], 10, 64)
	s.cpuTicks = user + system
	return s, errors.Join(errs[:]...) == nil
}

// bootID tells two lives of the host apart: pid and start time repeat across them.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
