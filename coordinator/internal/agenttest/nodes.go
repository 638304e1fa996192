package agenttest

import (
	"context"
	"sync"
	"time"

	agentapi "warmd/agent/api"
	"warmd/placement"
)

// Fault is what happens to one call.
type Fault int

// The faults of a call.
const (
	Fine      Fault = iota
	CutBefore       // the call never arrives
	CutAfter        // it arrives; the answer does not
	CutMiddle       // the first line arrives, then the stream breaks
	Hang            // nothing comes back until the caller gives up
)

// Nodes is a set of agents and one coordinator's way to them: calls with faults, and
// a view that is told of changes when the test says so.
type Nodes struct {
	Agents map[string]*Agent
	// Fault decides what happens to a call; nil: nothing does.
	Fault func(node, op, id string) Fault
	// Drain is how long a release takes; one whose caller hangs up before is not made.
	Drain time.Duration

	mu     sync.Mutex
	view   map[string]placement.NodeView
	change chan struct{}
	// Deaf keeps Changed silent: news are in the view, and nobody has looked yet.
	Deaf bool
	// Marked counts MarkUnreachable by node.
	Marked map[string]int
}

// NewNodes makes a fleet whose view knows every agent as it is now.
func NewNodes(agents ...*Agent) *Nodes {
	f := &Nodes{Agents: map[string]*Agent{}, view: map[string]placement.NodeView{}, change: make(chan struct{}, 1), Marked: map[string]int{}}
	for _, a := range agents {
		f.Agents[a.Name] = a
		f.Apply(a.Capacity())
	}
	return f
}

// Live makes every change of an agent visible at once.
func (f *Nodes) Live() *Nodes {
	for _, a := range f.Agents {
		a.OnChange = f.Apply
	}
	return f
}

// Refresh takes every agent's word, as gossip does in the end.
func (f *Nodes) Refresh() {
	for _, a := range f.Agents {
		f.Apply(a.Capacity())
	}
}

// Claim is placer.Agents.
func (f *Nodes) Claim(ctx context.Context, node, _, id string, c agentapi.Claim, each func(placement.Progress) bool) error {
	a := f.Agents[node]
	if a == nil {
		return placement.Errorf(placement.CodeUnavailable, "no such host %s", node)
	}
	switch f.fault(node, "claim", id) {
	case CutBefore:
		return placement.Errorf(placement.CodeUnavailable, "connection refused")
	case Hang:
		<-ctx.Done()
		return ctx.Err()
	case CutAfter:
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		_ = a.Place(ctx, id, c, func(placement.Progress) bool { return false })
		return errCut
	case CutMiddle:
		_ = a.Place(ctx, id, c, func(l placement.Progress) bool { each(l); return false })
		return errCut
	}
	return a.Place(ctx, id, c, each)
}

// Release is placer.Agents and sweep's.
func (f *Nodes) Release(ctx context.Context, node, _, id string, _ time.Duration) (placement.Placement, error) {
	a := f.Agents[node]
	if a == nil || f.fault(node, "release", id) != Fine {
		return placement.Placement{}, placement.Errorf(placement.CodeUnavailable, "connection refused")
	}
	if f.Drain > 0 {
		select {
		case <-ctx.Done():
			return placement.Placement{}, ctx.Err()
		case <-time.After(f.Drain):
		}
	}
	return a.Release(id)
}

// Wake is placer.Agents.
func (f *Nodes) Wake(_ context.Context, node, _, id, _ string) (placement.Placement, error) {
	a := f.Agents[node]
	if a == nil || f.fault(node, "wake", id) != Fine {
		return placement.Placement{}, placement.Errorf(placement.CodeUnavailable, "connection refused")
	}
	defer func() { f.Apply(a.Capacity()) }()
	return a.Rest(id, false)
}

// Held is sweep's question what a node holds.
func (f *Nodes) Held(ctx context.Context, node, _ string) ([]placement.Placement, error) {
	a := f.Agents[node]
	switch fault := f.fault(node, "held", ""); {
	case fault == Hang:
		<-ctx.Done()
		return nil, ctx.Err()
	case a == nil || fault != Fine:
		return nil, placement.Errorf(placement.CodeUnavailable, "connection refused")
	}
	return a.Held(), nil
}

// Ask is sweep's question what became of one placement.
func (f *Nodes) Ask(_ context.Context, node, _, id string) (placement.Placement, error) {
	a := f.Agents[node]
	if a == nil || f.fault(node, "ask", id) != Fine {
		return placement.Placement{}, placement.Errorf(placement.CodeUnavailable, "connection refused")
	}
	return a.Get(id)
}

func (f *Nodes) fault(node, op, id string) Fault {
	if f.Fault == nil {
		return Fine
	}
	return f.Fault(node, op, id)
}

// Fleet is the view.
func (f *Nodes) Fleet() placement.Fleet {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := placement.Fleet{From: "test", At: time.Now()}
	for _, n := range f.view {
		out.Nodes = append(out.Nodes, n)
	}
	out.Nodes = placement.NewSnapshot(out.Nodes, nil).Nodes
	return out
}

// Apply takes a node's word, unless a newer one is known: the node has answered.
func (f *Nodes) Apply(c placement.Capacity) {
	f.mu.Lock()
	have, ok := f.view[c.Node]
	if !ok || !have.Newer(c) {
		f.view[c.Node] = placement.NodeView{Capacity: c, Alive: true, Status: "alive"}
	}
	f.mu.Unlock()
	f.poke()
}

// MarkUnreachable notes that a call did not reach a node.
func (f *Nodes) MarkUnreachable(node string) {
	f.mu.Lock()
	f.Marked[node]++
	f.mu.Unlock()
	f.Mark(node, "suspect")
}

// Mark sets membership's opinion of a node.
func (f *Nodes) Mark(node, status string) {
	f.mu.Lock()
	if n, ok := f.view[node]; ok {
		n.Status, n.Alive = status, status == "alive"
		f.view[node] = n
	}
	f.mu.Unlock()
	f.poke()
}

// Changed tells that the view changed.
func (f *Nodes) Changed() <-chan struct{} { return f.change }

func (f *Nodes) poke() {
	if f.Deaf {
		return
	}
	select {
	case f.change <- struct{}{}:
	default:
	}
}
