package coordinator

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	agentapi "warmd/agent/api"
	"warmd/agent/api/access"
	"warmd/coordinator/internal/placer"
	"warmd/coordinator/internal/store"
	"warmd/coordinator/internal/sweep"
	"warmd/placement"
)

// recordStore is the store as the coordinator uses it: etcd, or memory in tests.
type recordStore interface {
	Create(ctx context.Context, r store.Record, f store.Fence) (store.Record, error)
	Update(ctx context.Context, r store.Record, f store.Fence) (store.Record, error)
	Join(ctx context.Context, r store.Record, requestID string) (store.Record, error)
	Delete(ctx context.Context, r store.Record, f store.Fence) error
	Get(ctx context.Context, id string) (store.Record, error)
	ByRequest(ctx context.Context, requestID string) (store.Record, error)
	List(ctx context.Context) ([]store.Record, error)
	Ping(ctx context.Context) error
	Follow(ctx context.Context, each func(store.Change)) error
}

// world is everything outside the placer and the sweeper, in one piece: records from
// etcd, the same records remembered, agents by HTTP, the fleet by gossip.
type world struct {
	recordStore
	*store.Mirror
	View
	living func(context.Context) (map[string]bool, error)
	resume func(store.Record) bool
	dial   func(node, addr string) (*agentapi.Client, error)
	health *health

	mu      sync.Mutex
	clients map[clientKey]*agentapi.Client
}

type clientKey struct{ node, addr string }

var (
	_ placer.Effects = (*world)(nil)
	_ sweep.Effects  = (*world)(nil)
)

func newWorld(records recordStore, v View, dial func(node, addr string) (*agentapi.Client, error), living func(context.Context) (map[string]bool, error)) *world {
	return &world{recordStore: records, Mirror: store.NewMirror(), View: v, dial: dial, living: living, health: newHealth(), clients: map[clientKey]*agentapi.Client{}}
}

// dialAgent calls a node by its name: the certificate must be for that, whatever the
// address that gossip gave.
func (c *Coordinator) dialAgent(node, addr string) (*agentapi.Client, error) {
	if addr == "" {
		return nil, placement.Errorf(placement.CodeUnavailable, "node %s has no fleet address", node).
			WithHint("set a TCP listen address in its agent's configuration")
	}
	if c.certs == nil {
		return agentapi.NewClient(addr, nil)
	}
	return agentapi.NewClient("https://"+addr, agentapi.NewTransport(c.certs.Client(node, access.UnitAgent)))
}

// Fleet is the nodes that have an agent. Coordinators are members of the gossip too,
// with nothing to place on and nobody to call.
func (w *world) Fleet() placement.Fleet {
	f := w.View.Fleet()
	f.Nodes = slices.DeleteFunc(slices.Clone(f.Nodes), func(n placement.NodeView) bool {
		return len(n.Devices) == 0 && len(n.Runtimes) == 0 && n.Addr == ""
	})
	return f
}

// agent is the client of a node's agent, made once per address.
func (w *world) agent(node, addr string) (*agentapi.Client, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := clientKey{node, addr}
	if c := w.clients[k]; c != nil {
		return c, nil
	}
	c, err := w.dial(node, addr)
	if err != nil {
		return nil, err
	}
	for old := range w.clients { // a node that moved leaves no connections behind
		if old.node == node {
			w.clients[old].Close()
			delete(w.clients, old)
		}
	}
	w.clients[k] = c
	return c, nil
}

// holder is the client of the node that a placement is on: every record names one. When we
// know no such node, then we have just started and are in no fleet yet, or it is away.
func (w *world) holder(rec store.Record) (*agentapi.Client, error) {
	addr, heard := w.addr(rec.Node)
	if !heard {
		return nil, placement.Errorf(placement.CodeUnavailable, "this coordinator does not hear %s, the node of placement %s", rec.Node, rec.ID).
			WithHint("one that has just started hears it within seconds; then: warmctl nodes, and systemctl status warmd-agent on %s", rec.Node)
	}
	return w.agent(rec.Node, addr)
}

// agentOf is the client of a node that somebody named.
func (w *world) agentOf(node string) (*agentapi.Client, error) {
	addr, heard := w.addr(node)
	if !heard {
		return nil, placement.Errorf(placement.CodeNotFound, "no node is named %q", node).WithHint("warmctl nodes lists the names")
	}
	return w.agent(node, addr)
}

// addr is where a node's agent listens, if this coordinator hears the node.
func (w *world) addr(node string) (addr string, heard bool) {
	for _, n := range w.Fleet().Nodes {
		if n.Node == node {
			return n.Addr, true
		}
	}
	return "", false
}

func (w *world) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.clients {
		c.Close()
	}
}

// Claim implements placer.Agents.
func (w *world) Claim(ctx context.Context, node, addr, id string, claim agentapi.Claim, each func(placement.Progress) bool) error {
	c, err := w.agent(node, addr)
	if err != nil {
		return placement.Errorf(placement.CodeUnavailable, "reach node %s: %v", node, err)
	}
	return c.Place(ctx, id, claim, each)
}

// Release implements placer.Agents and sweep.Agents.
func (w *world) Release(ctx context.Context, node, addr, id string, grace time.Duration) (placement.Placement, error) {
	c, err := w.agent(node, addr)
	if err != nil {
		return placement.Placement{}, err
	}
	return c.Release(ctx, id, grace.Seconds())
}

// Wake implements placer.Agents.
func (w *world) Wake(ctx context.Context, node, addr, id, traceparent string) (placement.Placement, error) {
	c, err := w.agent(node, addr)
	if err != nil {
		return placement.Placement{}, err
	}
	p, err := c.Wake(ctx, id, traceparent)
	if err == nil {
		w.refresh(ctx, c)
	}
	return p, err
}

// refresh takes a node's word at once, where its own would come a moment later: who
// asks in the same breath must find it so, here, too.
func (w *world) refresh(ctx context.Context, c *agentapi.Client) {
	if s, err := c.Node(ctx); err == nil {
		w.View.Apply(s.Capacity)
	}
}

// Held implements sweep.Agents.
func (w *world) Held(ctx context.Context, node, addr string) ([]placement.Placement, error) {
	c, err := w.agent(node, addr)
	if err != nil {
		return nil, err
	}
	st, err := c.Node(ctx)
	if err != nil {
		return nil, err
	}
	w.View.Apply(st.Capacity) // it answers: whoever thought that it does not is wrong
	if !st.Ready {
		return nil, fmt.Errorf("node %s has not looked at all its devices yet", node)
	}
	return c.Placements(ctx)
}

// Ask implements sweep.Agents.
func (w *world) Ask(ctx context.Context, node, addr, id string) (placement.Placement, error) {
	c, err := w.agent(node, addr)
	if err != nil {
		return placement.Placement{}, err
	}
	return c.Placement(ctx, id)
}

// Living implements sweep.Effects.
func (w *world) Living(ctx context.Context) (map[string]bool, error) { return w.living(ctx) }

// Resume implements sweep.Effects.
func (w *world) Resume(r store.Record) bool { return w.resume(r) }

// health is what we think of etcd.
type health struct {
	mu   sync.Mutex
	err  error
	well time.Time // when it last answered
}

func newHealth() *health { return &health{well: time.Now()} }

func (h *health) note(err error, ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err = err; err == nil {
		h.well = time.Now()
	}
}

// state is "ok" or what is wrong, and how old the last good word is.
func (h *health) state() (string, time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return h.err.Error(), time.Since(h.well)
	}
	return "ok", time.Since(h.well)
}
