package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"warmd/placement"
)

// The exit codes. They are part of the interface: scripts branch on them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitNoCapacity  = 4
	exitUnavailable = 5
	exitTimeout     = 6
	exitDenied      = 7
	exitInterrupted = 130
)

// exitCodes documents them, for help and man pages.
var exitCodes = []struct {
	code int
	says string
}{
	{exitOK, "done"},
	{exitFailed, "the operation failed"},
	{exitUsage, "usage: unknown flag, bad value, a request that is refused for its form"},
	{exitNotFound, "no such placement, node, model or runtime"},
	{exitNoCapacity, "no capacity: every slot that would do is taken or drains"},
	{exitUnavailable, "the coordinator, the agent or etcd cannot be reached"},
	{exitTimeout, "the time given was over"},
	{exitDenied, "not allowed: nobody the server knows, or somebody without the role"},
	{exitInterrupted, "interrupted (Ctrl-C)"},
}

var exitOf = map[placement.Code]int{
	placement.CodeBadRequest: exitUsage, placement.CodeArgRefused: exitUsage, placement.CodeConflict: exitUsage, placement.CodeUnsupported: exitUsage,
	placement.CodeNotFound: exitNotFound, placement.CodeModelNotFound: exitNotFound, placement.CodeUnknownRuntime: exitNotFound,
	placement.CodeNoCapacity: exitNoCapacity, placement.CodeNoWarm: exitNoCapacity, placement.CodeDraining: exitNoCapacity,
	placement.CodeUnavailable: exitUnavailable, placement.CodeTimeout: exitTimeout,
	placement.CodeUnauthorized: exitDenied, placement.CodeForbidden: exitDenied,
}

// exitError is an error with an exit code of its own. With an empty message
// nothing is printed: the command has said it all.
type exitError struct {
	code int
	err  *placement.Error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

// usagef is a mistake on the command line.
func usagef(format string, args ...any) *placement.Error {
	return placement.Errorf(placement.CodeBadRequest, format, args...)
}

// usageFromCLI turns urfave's parse errors into ours; what is left of them after
// arrange are values of the wrong form.
func usageFromCLI(_ *cli.Context, err error, _ bool) error {
	return usagef("%s", strings.Replace(err.Error(), "for flag -", "for flag --", 1))
}

// interrupted gives an error that came from Ctrl-C its exit code.
func interrupted(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*exitError](err); !ok && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return &exitError{code: exitInterrupted}
	}
	return err
}

// exitCode is the exit code of an error.
func exitCode(err error) int {
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	switch {
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.Is(err, io.ErrUnexpectedEOF):
		return exitUnavailable
	}
	if code, ok := exitOf[placement.AsError(err).Code]; ok {
		return code
	}
	return exitFailed
}

// fail prints an error on stderr and returns its exit code.
func (c console) fail(err error, asJSON bool) int {
	code := exitCode(err)
	c.report(err, code, asJSON)
	return code
}

// report prints an error: what is wrong, what to try, and what the engine said.
func (c console) report(err error, code int, asJSON bool) {
	e := placement.AsError(err)
	if x, ok := errors.AsType[*exitError](err); ok {
		if x.err == nil {
			return
		}
		e = x.err
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e = placement.Errorf(placement.CodeTimeout, "the time given was over").WithHint("give more with --timeout")
	case errors.Is(err, io.ErrUnexpectedEOF):
		e = placement.Errorf(placement.CodeUnavailable, "the server ended its answer too early").WithHint("it may have been stopped; ask again")
	}
	if asJSON {
		enc := json.NewEncoder(c.Err)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(struct {
			Error *placement.Error `json:"error"`
			Exit  int              `json:"exit_code"`
		}{e, code})
		return
	}
	fmt.Fprintf(c.Err, "warmctl: %s\n", printable(e.Message))
	if e.Capacity != nil && code == exitNoCapacity {
		slots, free, busy, quarantined, warm := e.Capacity.Totals()
		fmt.Fprintf(c.Err, "  %s now: %s, %d free, %d busy, %d in quarantine, %s\n", printable(e.Capacity.Node), plural(slots, "slot"), free, busy, quarantined, plural(warm, "warm worker"))
	}
	if e.Hint != "" {
		fmt.Fprintf(c.Err, "  try: %s\n", printable(e.Hint))
	}
	if detail := strings.TrimRight(e.Detail, "\n"); detail != "" {
		for line := range strings.SplitSeq(detail, "\n") {
			fmt.Fprintf(c.Err, "    %s\n", printable(line))
		}
	}
}
