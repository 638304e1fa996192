package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"warmd/placement"
)

// BenchmarkRecorder is what recording costs: warm starts in turns on two hosts, of
// which one keeps no traces, request to ready.
//
//	make runtimes, then WARMD_TEST_REAL=1 WARMD_TEST_RUNTIMES=~/.cache/warmd/runtimes \
//	  go test ./cmd/warmd -run xxx -bench Recorder -benchtime 40x
func BenchmarkRecorder(b *testing.B) {
	models := b.TempDir()
	realModels(b, models)
	none := filepath.Join(models, "agent.toml")
	if err := os.WriteFile(none, []byte("keep_traces = 0\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	arms := []*host{startHost(b, realRoot(b), models, 1), startHost(b, realRoot(b), models, 1, func(h *host) {
		h.agentMore = []string{"--config", none}
	})}
	for _, h := range arms {
		h.warm(b, 1, 90*time.Second)
		h.joined(b)
	}
	start := func(h *host) time.Duration {
		h.warm(b, 1, 20*time.Second)
		time.Sleep(2 * time.Second) // the other's spans have been sent by then
		begin := time.Now()
		p := h.place(b, placement.Request{Model: "opt-125m", Runtime: realRuntime, Start: placement.StartWarm, Args: smallArgs})
		took := time.Since(begin)
		h.release(b, p.ID)
		return took
	}
	for _, h := range arms {
		start(h) // reads the files of the model
	}
	took, n := make([][]time.Duration, len(arms)), 0
	for b.Loop() {
		for i := range arms {
			i = (i + n) % len(arms) // who is first in one turn is last in the next
			took[i] = append(took[i], start(arms[i]))
		}
		n++
	}
	for i, name := range []string{"on", "off"} {
		slices.Sort(took[i])
		b.ReportMetric(took[i][len(took[i])/2].Seconds(), name+"-p50-s")
	}
	b.ReportMetric(took[0][n/2].Seconds()/took[1][n/2].Seconds(), "on/off")
	b.ReportMetric(0, "ns/op")
}
