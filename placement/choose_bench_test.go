package placement

import (
	"fmt"
	"testing"
)

// fleetOf makes a fleet of 8-GPU nodes that is nine tenths full: one node in ten
// has a free slot, one in a hundred a parked worker.
func fleetOf(nodes int) Snapshot {
	views := make([]NodeView, nodes)
	claims := map[SlotKey]int{}
	for i := range views {
		c := Capacity{Node: fmt.Sprintf("node-%05d", i), Epoch: 1, Generation: 1, Addr: fmt.Sprintf("10.%d.%d.1:7800", i/256, i%256)}
		c.Runtimes = []Runtime{{Name: "vllm", Kind: "vllm", Device: "cuda", Zygote: "up"}}
		for j := range 8 {
			d := Device{ID: fmt.Sprintf("GPU-%d-%d", i, j), Kind: "cuda", Slots: 1, Busy: 1, TotalBytes: 141 << 30}
			if i%10 == 0 {
				d.Busy, d.Free, d.FreeBytes = 0, 1, 140<<30
			}
			if i%100 == 0 && j == 3 {
				d.Warm = map[string]int{"vllm": 1}
			}
			c.Devices = append(c.Devices, d)
		}
		if i%50 == 0 {
			claims[SlotKey{c.Node, c.Devices[0].ID}] = 1
		}
		views[i] = NodeView{Capacity: c, Alive: true, Status: "alive"}
	}
	return NewSnapshot(views, claims)
}

func BenchmarkChoose(b *testing.B) {
	for _, nodes := range []int{100, 1_000, 10_000} {
		s := fleetOf(nodes)
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if d := Choose(s, Request{Model: "m"}); len(d.Candidates)+len(d.Passed) != nodes {
					b.Fatal("a node is missing from the decision")
				}
			}
		})
	}
	// The worst case for the words and the sort: every node is a candidate.
	s := fleetOf(10_000)
	for i := range s.Nodes {
		for j := range s.Nodes[i].Devices {
			s.Nodes[i].Devices[j].Free, s.Nodes[i].Devices[j].Busy = 1, 0
		}
	}
	b.Run("nodes=10000/empty", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Choose(s, Request{Model: "m"})
		}
	})
}
