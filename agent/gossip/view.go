package gossip

import (
	"maps"
	"slices"
	"sync"
	"time"

	"warmd/placement"
)

// How long the view believes and remembers. Memberlist forgets the dead after 30
// seconds; an operator wants to see that a node is missing a day later.
const (
	suspectFor  = 30 * time.Second // a failed call outweighs gossip this long
	strangerFor = time.Minute      // a node that spoke but that memberlist never named
	keepLeft    = 10 * time.Minute
	keepFailed  = 24 * time.Hour
	maxNodes    = 20_000 // a stranger above this is not taken in
)

// The values of placement.NodeView.Status.
const (
	StatusAlive   = "alive"
	StatusSuspect = "suspect" // a call to it failed a moment ago
	StatusLeft    = "left"
	StatusFailed  = "failed"
)

// View is what one member knows of all nodes. Everything in it is a hint with an
// age. It is safe for concurrent use, never blocks for long, and calls nobody.
//
// A word (placement.Capacity) is replaced whole and never changed, so readers share it.
type View struct {
	self string

	mu      sync.Mutex
	nodes   map[string]*entry
	names   []string // sorted; nil when nodes gained or lost one
	changed chan struct{}
	// newCoordinator is poked when a coordinator appears, or starts a new life.
	newCoordinator chan struct{}
}

// entry is one node. Invariant: word.Node is the key; heard is when word was
// received or last confirmed.
type entry struct {
	word    placement.Capacity
	heard   time.Time
	status  string // StatusAlive, StatusLeft, StatusFailed
	since   time.Time
	suspect time.Time // until when; zero when no call failed
	reborn  bool      // it joined again and has not said yet what it has
	member  bool      // memberlist has named it
	peer    peer
}

// NewView makes the view of the member called self, which knows only itself.
func NewView(self string) *View {
	v := &View{self: self, nodes: map[string]*entry{}, changed: make(chan struct{}, 1), newCoordinator: make(chan struct{}, 1)}
	v.nodes[self] = &entry{word: placement.Capacity{Node: self}, heard: time.Now(), status: StatusAlive, member: true}
	return v
}

// Changed wakes its one reader when the view has changed since the last wake-up;
// there may be nothing new to see.
func (v *View) Changed() <-chan struct{} { return v.changed }

// poke wakes a loop that looks at the latest state anyway: nothing is queued.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Fleet is this member's view of all nodes. A coordinator alone is a member, but no
// node: nothing runs there.
func (v *View) Fleet() placement.Fleet {
	f := v.Members()
	f.Nodes = slices.DeleteFunc(f.Nodes, func(n placement.NodeView) bool { return n.Coordinator && len(n.Devices) == 0 })
	return f
}

// Members is the view now, of everybody who gossips, coordinators too: each with the
// age of its word, sorted by name.
func (v *View) Members() placement.Fleet {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	v.forget(now)
	if v.names == nil {
		v.names = slices.Sorted(maps.Keys(v.nodes))
	}
	f := placement.Fleet{From: v.self, At: now, Nodes: make([]placement.NodeView, 0, len(v.names))}
	for _, name := range v.names {
		e := v.nodes[name]
		n := placement.NodeView{Capacity: e.word, Status: e.status, AgeSeconds: now.Sub(e.heard).Seconds()}
		switch {
		case name == v.self:
			n.AgeSeconds = 0
		case e.status == StatusAlive && now.Before(e.suspect):
			n.Status = StatusSuspect
		}
		n.Alive = n.Status == StatusAlive
		f.Nodes = append(f.Nodes, n)
	}
	return f
}

// forget drops what nobody needs to see any more. Caller holds mu.
func (v *View) forget(now time.Time) {
	for name, e := range v.nodes {
		gone := e.status == StatusLeft && now.Sub(e.since) > keepLeft ||
			e.status == StatusFailed && now.Sub(e.since) > keepFailed ||
			!e.member && now.Sub(e.heard) > strangerFor
		if gone && name != v.self {
			delete(v.nodes, name)
			v.names = nil
		}
	}
}

// setSelf replaces this member's own word. Only [View.Apply] can have been faster.
func (v *View) setSelf(c placement.Capacity) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.nodes[v.self]
	if c.Epoch == e.word.Epoch && e.word.Newer(c) {
		return
	}
	e.word, e.heard = c, time.Now()
	poke(v.changed)
}

// Apply takes a capacity that came with an answer of the node itself, a refusal
// above all: the node is reachable, and this is its newest word. It may be our own
// node: with `warmd dev`, a coordinator shares the view of its agent, and a slot that was
// given back before the answer must not look taken until the agent publishes.
func (v *View) Apply(c placement.Capacity) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if own := v.nodes[v.self]; c.Node == v.self {
		if c.Epoch == own.word.Epoch && c.Newer(own.word) {
			own.word, own.heard = c, time.Now()
			poke(v.changed)
		}
		return
	}
	e := v.take(c)
	if e == nil {
		return
	}
	if e.status != StatusAlive || !e.suspect.IsZero() {
		e.status, e.suspect, e.since = StatusAlive, time.Time{}, time.Now()
		poke(v.changed)
	}
}

// MarkUnreachable says that a call to the node failed: it is suspect, so not alive,
// until it answers somebody (Apply), says something new, or 30 s have passed.
func (v *View) MarkUnreachable(node string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.nodes[node]; e != nil && node != v.self {
		e.suspect = time.Now().Add(suspectFor)
		poke(v.changed)
	}
}

// hear takes a word that came by gossip or straight from the node. It says
// nothing about whether we can reach the node.
func (v *View) hear(c placement.Capacity) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.take(c)
}

// take stores a word unless an entry holds a newer one, and returns the entry;
// nil when the word is about this member, or about one node too many. The same
// generation again is no news, but it is fresher. Caller holds mu.
func (v *View) take(c placement.Capacity) *entry {
	if c.Node == "" || c.Node == v.self {
		return nil
	}
	e := v.nodes[c.Node]
	switch {
	case e == nil && len(v.nodes) >= maxNodes:
		return nil
	case e == nil:
		e = &entry{status: StatusAlive, since: time.Now()}
		v.nodes[c.Node] = e
		v.names = nil
	case e.word.Newer(c):
		return e
	}
	news := c.Newer(e.word)
	e.word, e.heard = c, time.Now()
	if news {
		e.suspect = time.Time{}
		poke(v.changed)
	}
	return e
}

// confirm says that what the node published as (epoch, generation) still stands.
func (v *View) confirm(node string, epoch int64, generation uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.nodes[node]; e != nil && e.word.Epoch == epoch && e.word.Generation >= generation {
		e.heard = time.Now()
	}
}

// memberUp is memberlist's word that a node joined or changed. A join after a
// failure or a farewell starts a new life: its word counts even when the host's
// clock, and so its epoch, went backwards. Until it has something to say (an agent
// joins before it has looked at its devices) what it said before is the best there is:
// a node must not vanish because its agent is restarted.
func (v *View) memberUp(p peer, c placement.Capacity, known bool) {
	if p.name == v.self {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.nodes[p.name]
	if e == nil {
		e = &entry{word: placement.Capacity{Node: p.name}, heard: time.Now(), status: StatusAlive, since: time.Now()}
		v.nodes[p.name] = e
		v.names = nil
	}
	if c.Coordinator && (!e.member || e.status != StatusAlive || e.word.Epoch != c.Epoch) {
		poke(v.newCoordinator)
	}
	if e.status != StatusAlive {
		e.status, e.since, e.suspect, e.reborn = StatusAlive, time.Now(), time.Time{}, true
	}
	e.member, e.peer = true, p
	if known && says(c) {
		if e.reborn && c.Epoch != e.word.Epoch {
			e.word, e.heard = placement.Capacity{Node: p.name}, time.Now()
		}
		e.reborn = false
		v.take(c)
	}
	poke(v.changed)
}

// says reports whether a word says what its node has, or that it is a coordinator.
func says(c placement.Capacity) bool {
	return c.Coordinator || c.Addr != "" || len(c.Devices) > 0 || len(c.Runtimes) > 0
}

// memberDown says that a node left, or failed. The two may come in any order: one
// that left cannot fail, and one that failed may turn out to have left.
func (v *View) memberDown(name, status string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.nodes[name]; e != nil && name != v.self && e.status != StatusLeft {
		e.status, e.since = status, time.Now()
		poke(v.changed)
	}
}

// coordinators are the living members that want exact words.
func (v *View) coordinators() []peer {
	return v.peers(func(e *entry) bool { return e.word.Coordinator })
}

// others are the living members.
func (v *View) others() []peer { return v.peers(func(*entry) bool { return true }) }

func (v *View) peers(want func(*entry) bool) (out []peer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for name, e := range v.nodes {
		if e.member && e.status == StatusAlive && name != v.self && want(e) {
			out = append(out, e.peer)
		}
	}
	return out
}

// missing are the gossip addresses of failed members; alive counts the others.
func (v *View) missing() (failed []string, alive int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.nodes {
		switch {
		case e.status == StatusFailed && e.member:
			failed = append(failed, e.peer.addr())
		case e.status == StatusAlive:
			alive++
		}
	}
	return failed, alive
}

// has reports whether a living member has this gossip address.
func (v *View) has(addr string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.nodes {
		if e.status == StatusAlive && e.member && e.peer.addr() == addr {
			return true
		}
	}
	return false
}
