package agenttest

import (
	"fmt"
	"sort"
	"sync"
	"time"
)

// Interval is one ownership of a slot, as the agent saw it. To is zero while it lasts.
type Interval struct {
	Node, Placement string
	Attempt         int
	From, To        time.Time
}

// History is every ownership that agents granted.
type History struct {
	mu  sync.Mutex
	all []Interval
}

func (h *History) add(i Interval) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, i)
}

func (h *History) close(node, id string, attempt int, at time.Time) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.all {
		if o := &h.all[i]; o.Node == node && o.Placement == id && o.Attempt == attempt && o.To.IsZero() {
			o.To = at
		}
	}
}

// All returns a copy, by time.
func (h *History) All() []Interval {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := append([]Interval(nil), h.all...)
	sort.SliceStable(out, func(i, j int) bool { return out[i].From.Before(out[j].From) })
	return out
}

// Check reports every moment at which a node had more owners than slots, and every
// attempt that was granted on two nodes: an attempt has one node.
func (h *History) Check(slots map[string]int) (bad []string) {
	open := map[string]int{}
	granted := map[string]string{}
	type edge struct {
		at   time.Time
		in   int
		what Interval
	}
	var edges []edge
	for _, i := range h.All() {
		key := fmt.Sprintf("%s/%d", i.Placement, i.Attempt)
		if other, ok := granted[key]; ok && other != i.Node {
			bad = append(bad, fmt.Sprintf("attempt %s was granted on %s and on %s", key, other, i.Node))
		}
		granted[key] = i.Node
		edges = append(edges, edge{i.From, +1, i})
		if !i.To.IsZero() {
			edges = append(edges, edge{i.To, -1, i})
		}
	}
	sort.SliceStable(edges, func(i, j int) bool {
		if !edges[i].at.Equal(edges[j].at) {
			return edges[i].at.Before(edges[j].at)
		}
		return edges[i].in < edges[j].in // a slot may be given on in the same instant
	})
	for _, e := range edges {
		open[e.what.Node] += e.in
		if open[e.what.Node] > slots[e.what.Node] {
			bad = append(bad, fmt.Sprintf("node %s had %d owners of %d slots when %s attempt %d began", e.what.Node, open[e.what.Node], slots[e.what.Node], e.what.Placement, e.what.Attempt))
		}
	}
	return bad
}
