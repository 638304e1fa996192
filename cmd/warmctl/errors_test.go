package main

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

// TestEveryCodeHasItsExitCode reads the codes out of the source, so that a new one
// must be given an exit code here on purpose.
func TestEveryCodeHasItsExitCode(t *testing.T) {
	want := map[placement.Code]int{
		"bad_request": 2, "arg_refused": 2, "conflict": 2, "unsupported": 2, "not_found": 3, "model_not_found": 3, "unknown_runtime": 3,
		"no_capacity": 4, "no_warm": 4, "draining": 4, "unavailable": 5, "timeout": 6,
		"unauthorized": 7, "forbidden": 7, "model_invalid": 1, "stale_attempt": 1, "start_failed": 1, "worker_lost": 1, "released": 1, "disk_full": 1, "internal": 1,
	}
	file, err := parser.ParseFile(token.NewFileSet(), "../../placement/errors.go", nil, 0)
	require.NoError(t, err)
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Code") {
			return true
		}
		lit, ok := spec.Values[0].(*ast.BasicLit)
		if !ok {
			return true
		}
		code, err := strconv.Unquote(lit.Value)
		require.NoError(t, err)
		exit, known := want[placement.Code(code)]
		require.True(t, known, "code %s has no exit code in this test", code)
		require.Equal(t, exit, exitCode(placement.Errorf(placement.Code(code), "x")), code)
		found++
		return true
	})
	require.Equal(t, len(want), found)
}

func TestPlainErrorsHaveExitCodesToo(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{&placement.FieldError{Field: "model", Problem: "is empty"}, 2},
		{fmt.Errorf("wrapped: %w", placement.Errorf(placement.CodeNotFound, "x")), 3},
		{context.Canceled, 130}, {fmt.Errorf("x: %w", context.DeadlineExceeded), 6}, {io.ErrUnexpectedEOF, 5},
		{errors.New("anything"), 1}, {&exitError{code: 130}, 130},
	} {
		require.Equal(t, tc.want, exitCode(tc.err), "%v", tc.err)
	}
}

func TestUnfinishedAnswersAreExplained(t *testing.T) {
	for err, want := range map[error]string{
		context.DeadlineExceeded: "the time given was over", io.ErrUnexpectedEOF: "the server ended its answer too early",
	} {
		var b strings.Builder
		console{Err: &b}.fail(err, false)
		require.Contains(t, b.String(), want)
		require.Contains(t, b.String(), "  try: ")
	}
}

func TestTextFromElsewhereCannotMoveTheCursor(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "tab\tstays": "tab\tstays", "é 模型": "é 模型", "\x1b[31mred\x1b[0m": "red", "a\x1b[2Jb": "a?[2Jb", "two\nlines": "two lines", "bell\x07": "bell?", "\x9b31m": "\uFFFD31m", "c1\u009b": "c1?",
	} {
		require.Equal(t, want, printable(in), "%q", in)
	}
}
