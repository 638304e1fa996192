package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// ExecLauncher starts zygotes as plain processes, each in a session of its own:
// for development, tests, and hosts without systemd. They outlive the agent; a
// later agent ends them through their control socket.
type ExecLauncher struct {
	mu    sync.Mutex
	units map[string]*started
}

var (
	_ Launcher     = (*ExecLauncher)(nil)
	_ exitReporter = (*ExecLauncher)(nil)
)

type started struct {
	proc  Proc
	done  chan struct{}
	cause string // valid once done is closed
}

// NewExecLauncher returns a launcher that has started nothing.
func NewExecLauncher() *ExecLauncher { return &ExecLauncher{units: map[string]*started{}} }

// Start runs the unit's command with exactly its environment.
func (l *ExecLauncher) Start(_ context.Context, u Unit) error {
	if len(u.Argv) == 0 {
		return fmt.Errorf("start zygote %s.%d: no command", u.Runtime, u.Generation)
	}
	if err := os.MkdirAll(filepath.Dir(u.Log), 0o750); err != nil {
		return fmt.Errorf("start zygote %s.%d: %w", u.Runtime, u.Generation, err)
	}
	log, err := os.OpenFile(u.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("start zygote %s.%d: %w", u.Runtime, u.Generation, err)
	}
	defer log.Close()
	// Not CommandContext: the end of a request must not end a zygote.
	cmd := exec.Command(u.Argv[0], u.Argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = u.Dir, log, log
	cmd.Env = append([]string{}, u.Env...) // never nil: that would mean our own environment
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start zygote %s.%d: %w", u.Runtime, u.Generation, err)
	}
	proc, _ := FindProc(cmd.Process.Pid) // our child: not reaped before the Wait below
	s := &started{proc: proc, done: make(chan struct{})}
	l.mu.Lock()
	l.units[u.Socket] = s
	l.mu.Unlock()
	go func() { // reaps; ends with the zygote, which may be long after this agent
		err := cmd.Wait()
		s.cause = exitWords(cmd.ProcessState, err)
		close(s.done)
	}()
	return nil
}

// Exited implements exitReporter.
func (l *ExecLauncher) Exited(u Unit) (string, bool) {
	l.mu.Lock()
	s := l.units[u.Socket]
	l.mu.Unlock()
	if s == nil {
		return "", false
	}
	select {
	case <-s.done:
		return s.cause, true
	default:
		return "", false
	}
}

// Stop kills the zygote itself; its workers live on, as with every other end of it.
func (l *ExecLauncher) Stop(ctx context.Context, u Unit) error {
	l.mu.Lock()
	s := l.units[u.Socket]
	delete(l.units, u.Socket)
	l.mu.Unlock()
	if s == nil {
		return nil
	}
	if err := s.proc.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, ErrGone) {
		return fmt.Errorf("stop zygote %s.%d: %w", u.Runtime, u.Generation, err)
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop zygote %s.%d: %w", u.Runtime, u.Generation, ctx.Err())
	}
}

func exitWords(s *os.ProcessState, err error) string {
	if s == nil {
		return fmt.Sprint(err)
	}
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Sprintf("killed by signal %d", ws.Signal())
	}
	return fmt.Sprintf("exited with code %d", s.ExitCode())
}
