package main

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

func (s *syncBuffer) await(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(s.String(), text) }, 10*time.Second, time.Millisecond, text)
}

// A drain shows what is left, tells what has ended, and comes back when the last slot
// is free.
func TestDrainWaitsAndReports(t *testing.T) {
	for name, tty := range map[string]bool{"terminal": true, "pipe": false} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			var out, errs syncBuffer
			con := f.console()
			con.Out, con.Err, con.ErrTTY = &out, &errs, tty
			code := make(chan int, 1)
			go func() { code <- run(t.Context(), con, []string{"drain", "n1"}) }()
			errs.await(t, "waiting for p-aaa1 (opt-125m)")
			f.set(func() { // its owner releases it; the worker takes its time to end
				p := f.placements["p-aaa1"]
				p.State = placement.Released
				f.placements["p-aaa1"] = p
			})
			errs.await(t, "waiting for 1 slot whose workers end")
			f.set(func() { // answers under way are still being written
				f.fleet.Nodes = slices.Clone(f.fleet.Nodes)
				n := &f.fleet.Nodes[0]
				n.Devices = slices.Clone(n.Devices)
				for i := range n.Devices {
					n.Devices[i].Busy = 0
				}
			})
			require.Equal(t, exitOK, <-code)
			require.Equal(t, "n1 takes no new placements\np-aaa1 (opt-125m) has ended\nnothing runs on n1\n", out.String())
			if tty {
				require.True(t, strings.HasSuffix(errs.String(), "\r\x1b[K"), "the line is wiped: %q", errs.String())
				require.Contains(t, errs.String(), "draining n1: waiting for p-aaa1 (opt-125m)  0.0 s")
			} else {
				require.Equal(t, "waiting for p-aaa1 (opt-125m)\nwaiting for 1 slot whose workers end\n", errs.String())
			}
		})
	}
}

func TestInterruptedDrainSaysThatItGoesOn(t *testing.T) {
	f := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	var errs syncBuffer
	con := f.console()
	con.Out, con.Err = io.Discard, &errs
	code := make(chan int, 1)
	go func() { code <- run(ctx, con, []string{"drain", "n1"}) }()
	errs.await(t, "waiting for")
	cancel()
	require.Equal(t, exitInterrupted, <-code)
	require.Contains(t, errs.String(), "warmctl: interrupted; n1 goes on draining\n  try: warmctl undrain n1 takes it back\n")
}
