package runtime

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Step is one word of progress of Add, Fix and friends.
type Step struct {
	Phase   string        `json:"phase"` // python, uv, venv, install, bytecode, inspect, rehearse, done
	Message string        `json:"message"`
	Elapsed time.Duration `json:"elapsed_ns"`
	// Warning says that it went on, but that somebody should read this.
	Warning bool `json:"warning,omitempty"`
}

// HintError is an error with what to do about it.
type HintError struct {
	Err  error
	Hint string
}

func (e *HintError) Error() string { return e.Err.Error() + " (" + e.Hint + ")" }
func (e *HintError) Unwrap() error { return e.Err }

func hint(err error, format string, args ...any) error {
	return &HintError{Err: err, Hint: fmt.Sprintf(format, args...)}
}

// progress reports steps against one beginning.
type progress struct {
	began time.Time
	to    func(Step)
}

func newProgress(to func(Step)) *progress {
	if to == nil {
		to = func(Step) {}
	}
	return &progress{began: time.Now(), to: to}
}

func (p *progress) say(phase, format string, args ...any) {
	p.to(Step{Phase: phase, Message: fmt.Sprintf(format, args...), Elapsed: time.Since(p.began)})
}

func (p *progress) warn(phase, format string, args ...any) {
	p.to(Step{Phase: phase, Message: fmt.Sprintf(format, args...), Elapsed: time.Since(p.began), Warning: true})
}

// command is one child of an installation.
type command struct {
	argv []string
	env  []string
	dir  string
	log  string            // everything it says is appended here
	line func(line string) // each line of its output, for progress; may be nil
	out  *bytes.Buffer     // its output besides, when it is an answer; may be nil
	wait time.Duration     // how long it may take to end after an interrupt
}

// run starts a child and waits for its end. When ctx ends it is interrupted, so
// that it can remove what it made, and killed with its group if it does not. The
// error carries the last lines that it said.
func (c command) run(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Env, cmd.Dir = c.env, c.dir
	// A group of its own: Ctrl-C reaches it through us, once.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = max(c.wait, 5*time.Second)
	tail := &tailLines{max: 15, each: c.line}
	sinks := []io.Writer{tail}
	if c.out != nil {
		sinks = append(sinks, c.out)
	}
	if c.log != "" {
		f, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		defer f.Close()
		fmt.Fprintf(f, "$ %s\n", strings.Join(c.argv, " "))
		sinks = append(sinks, f)
	}
	both := io.MultiWriter(sinks...)
	cmd.Stdout, cmd.Stderr = both, both // the same value: exec uses one pipe, lines stay in order
	err := cmd.Run()
	tail.flush()
	if cmd.Process != nil && err != nil {
		// It was killed, or it failed: what it started must not go on without it.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrWaitDelay):
		return nil // it ended well; a daemon of its own kept the pipe
	}
	return fmt.Errorf("%s: %w%s", strings.Join(short(c.argv), " "), err, tail.text())
}

// short keeps a command recognisable in a message.
func short(argv []string) []string {
	if len(argv) > 4 {
		return append(argv[:4:4], "...")
	}
	return argv
}

// tailLines keeps the last lines of a stream.
type tailLines struct {
	max   int
	each  func(string)
	buf   []byte
	lines []string
}

func (t *tailLines) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	for {
		n, line, err := bufio.ScanLines(t.buf, false)
		if n == 0 || err != nil {
			break
		}
		t.add(string(line))
		t.buf = t.buf[n:]
	}
	if len(t.buf) > 1<<16 { // a line without an end
		t.add(string(t.buf))
		t.buf = nil
	}
	return len(p), nil
}

func (t *tailLines) flush() {
	if len(t.buf) > 0 {
		t.add(string(t.buf))
		t.buf = nil
	}
}

func (t *tailLines) add(line string) {
	if t.each != nil {
		t.each(line)
	}
	if t.lines = append(t.lines, line); len(t.lines) > t.max {
		t.lines = t.lines[1:]
	}
}

func (t *tailLines) text() string {
	if len(t.lines) == 0 {
		return ""
	}
	return "\n    " + strings.Join(t.lines, "\n    ")
}
