package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// BenchmarkPlacementOverhead is what warmd itself costs: request in -> claim
// acknowledged by the agent (its journal fsynced), by `warmd dev` with its embedded
// etcd in a process of its own, on a runtime of kind exec:
//
//	go test ./cmd/warmd -run xxx -bench PlacementOverhead -benchtime 1000x
func BenchmarkPlacementOverhead(b *testing.B) {
	base := b.TempDir()
	dir, err := os.MkdirTemp("", "warmd-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	root, models := filepath.Join(base, "rt"), filepath.Join(base, "models")
	if err := os.MkdirAll(filepath.Join(models, "a"), 0o755); err != nil {
		b.Fatal(err)
	}
	execRuntime(b, root, "ok")
	start(b, "dev", "play-warmd", "dev", "--data", dir, "--runtimes", root, "--models", models, "--slots", "2")
	c, err := coordapi.NewClient(dir+"/coordinator.sock", nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	request := placement.Request{Model: "a", Runtime: "ok"}
	place := func() time.Duration {
		begin := time.Now()
		var took time.Duration
		p, err := c.Place(b.Context(), request, "assigned", func(p placement.Progress) {
			if p.Event == placement.EventAccepted {
				took = time.Since(begin)
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Release(b.Context(), p.ID, 0); err != nil {
			b.Fatal(err)
		}
		return took
	}
	eventually(b, 30*time.Second, "dev places", func() error {
		p, err := c.Place(b.Context(), request, "ready", nil)
		if err == nil {
			_, err = c.Release(b.Context(), p.ID, 0)
		}
		return err
	})
	var all []time.Duration
	for b.Loop() {
		all = append(all, place())
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkAgentIdle is what an agent costs that has nothing to do, for 20 s: its
// share of a core and its resident memory, engines and zygote not counted.
//
//	go test ./cmd/warmd -run xxx -bench AgentIdle -benchtime 1x
func BenchmarkAgentIdle(b *testing.B) {
	base := b.TempDir()
	dir, err := os.MkdirTemp("", "warmd-idle-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	root := filepath.Join(base, "rt")
	execRuntime(b, root, "ok")
	warmd := os.Getenv("WARMD_BIN") // the real binary: this test's own is another one
	if warmd == "" {
		b.Fatal("WARMD_BIN is not set: make build, then WARMD_BIN=$PWD/bin/warmd")
	}
	p := startBinary(b, warmd, "agent", "agent", "--name", "idle", "--data", dir+"/d", "--run", dir+"/r", "--socket", dir+"/a.sock",
		"--runtimes", root, "--gossip", "127.0.0.1:0", "--end-engines")
	c, err := agentapi.NewClient(dir+"/a.sock", nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	eventually(b, 30*time.Second, "agent ready", func() error {
		s, err := c.Node(b.Context())
		if err == nil && !s.Ready {
			err = fmt.Errorf("not ready")
		}
		return err
	})
	for b.Loop() {
		time.Sleep(10 * time.Second) // settle
		before, _ := usage(b, p.Process.Pid)
		time.Sleep(20 * time.Second)
		after, rss := usage(b, p.Process.Pid)
		b.ReportMetric((after-before)/20*100, "%core")
		b.ReportMetric(rss, "MiB-rss")
	}
	b.ReportMetric(0, "ns/op")
}

// usage is the CPU seconds and the resident MiB of a process.
func usage(b *testing.B, pid int) (cpu, rss float64) {
	b.Helper()
	f, err := statFields(pid)
	if err != nil {
		b.Fatal(err)
	}
	var utime, stime, pages float64
	if _, err := fmt.Sscan(f[11], &utime); err != nil {
		b.Fatal(err)
	}
	_, _ = fmt.Sscan(f[12], &stime)
	_, _ = fmt.Sscan(f[21], &pages)
	return (utime + stime) / 100, pages * float64(os.Getpagesize()) / (1 << 20)
}
