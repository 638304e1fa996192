package main

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

const engineLog = "\x1b[32mINFO\x1b[0m up\r\nend \x1b[2J\x07"

// TestLogsArePlainOnATerminalAndUntouchedInAPipe.
func TestLogsArePlainOnATerminalAndUntouchedInAPipe(t *testing.T) {
	var out strings.Builder
	c := &call{console: console{Out: &out}, ctx: t.Context()}
	require.NoError(t, c.copyLog(strings.NewReader(engineLog)))
	require.Equal(t, engineLog, out.String())

	out.Reset()
	c.OutTTY = true
	require.NoError(t, c.copyLog(strings.NewReader(engineLog)))
	require.Equal(t, "INFO up\nend ?[2J?\n", out.String())
}

func TestLogThatBreaksIsAnError(t *testing.T) {
	for _, tty := range []bool{true, false} {
		c := &call{console: console{Out: io.Discard, OutTTY: tty}, ctx: t.Context()}
		require.ErrorContains(t, c.copyLog(iotest.ErrReader(io.ErrClosedPipe)), "read log: ")
	}
}
