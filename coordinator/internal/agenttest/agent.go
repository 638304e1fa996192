// Package agenttest is a fleet of agents in memory that keep the rules a real agent
// keeps, for tests of the coordinator: one owner of each slot, the same answer to
// the same claim, no attempt below the highest seen, fresh capacity with every
// answer, and a worker that lets go when nobody asks for it before it is ready.
// What they do is written to a [History], which a checker reads.
package agenttest

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	agentapi "warmd/agent/api"
	"warmd/placement"
)

// Agent is one node with one device.
type Agent struct {
	Name  string
	Addr  string
	Slots int
	// Start is how a start goes: it returns when the first token is out, or why not.
	// nil: at once. It runs in the agent's own goroutine.
	Start func(ctx context.Context, id string, c agentapi.Claim) error
	// OrphanGrace is how long a start goes on that nobody follows (30 s).
	OrphanGrace time.Duration
	// OnChange is called after every change of capacity.
	OnChange func(placement.Capacity)
	History  *History

	mu      sync.Mutex
	epoch   int64
	gen     uint64
	drain   bool
	held    map[string]*held
	highest map[string]int
	past    map[string]placement.Placement
}

type held struct {
	p         placement.Placement
	attempt   int
	ended     chan struct{}
	line      placement.Progress // valid once ended is closed
	cancel    context.CancelFunc
	followers int
	orphaned  *time.Timer
}

// New makes an agent with one device "cpu-0" and one runtime "vllm".
func New(name string, slots int, h *History) *Agent {
	return &Agent{
		Name: name, Addr: name + ":7070", Slots: slots, OrphanGrace: 30 * time.Second, History: h, epoch: 1, gen: 1,
		held: map[string]*held{}, highest: map[string]int{}, past: map[string]placement.Placement{},
	}
}

// Capacity is what the node says it has.
func (a *Agent) Capacity() placement.Capacity {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.capacity()
}

func (a *Agent) capacity() placement.Capacity {
	d := placement.Device{ID: "cpu-0", Kind: "cpu", TotalBytes: 8 << 30, FreeBytes: 8 << 30, Slots: a.Slots, Busy: len(a.held), Free: a.Slots - len(a.held)}
	d.Warm = map[string]int{"vllm": d.Free}
	for id, h := range a.held {
		d.Placements = append(d.Placements, id)
		if h.p.Sleeping {
			if d.Sleeping == nil {
				d.Sleeping = map[string]string{}
			}
			d.Sleeping[id] = h.p.Request.Key()
		}
	}
	return placement.Capacity{
		Node: a.Name, Addr: a.Addr, Epoch: a.epoch, Generation: a.gen, Draining: a.drain, Devices: []placement.Device{d},
		Runtimes: []placement.Runtime{{Name: "vllm", Kind: "vllm", Version: "0.32.0", Device: "cpu", Zygote: "up"}},
	}
}

// Place is PUT /v1/placements/{id}.
func (a *Agent) Place(ctx context.Context, id string, c agentapi.Claim, each func(placement.Progress) bool) error {
	h, err := a.claim(id, c)
	if err != nil {
		return err
	}
	defer a.unfollow(h)
	a.mu.Lock()
	p, cap1 := h.p, a.capacity()
	a.mu.Unlock()
	if !each(placement.Progress{Event: placement.EventAccepted, Placement: &p, Capacity: &cap1}) {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-h.ended:
		each(h.line)
		return nil
	}
}

func (a *Agent) claim(id string, c agentapi.Claim) (*held, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	refuse := func(code placement.Code, format string, args ...any) (*held, error) {
		e := placement.Errorf(code, format, args...)
		now := a.capacity()
		e.Capacity = &now
		return nil, e
	}
	if h := a.held[id]; h != nil && h.attempt == c.Attempt {
		h.followers++
		if h.orphaned != nil {
			h.orphaned.Stop()
		}
		return h, nil
	}
	switch {
	case c.Attempt < a.highest[id]:
		return refuse(placement.CodeStaleAttempt, "attempt %d is below %d", c.Attempt, a.highest[id])
	case a.past[id].ID != "" && a.past[id].Attempt == c.Attempt: // the same claim again: the same end
		p := a.past[id]
		code := placement.CodeStartFailed
		if p.State == placement.Released {
			code = placement.CodeReleased
		}
		return refuse(code, "%s", p.Reason)
	case a.drain:
		return refuse(placement.CodeDraining, "node %s drains", a.Name)
	case a.held[id] != nil: // a higher attempt replaces the lower
		a.end(a.held[id], placement.Failed, "replaced by a later attempt")
	}
	if len(a.held) >= a.Slots {
		return refuse(placement.CodeNoCapacity, "every slot of %s is taken", a.Name)
	}
	a.highest[id] = c.Attempt
	ctx, cancel := context.WithCancel(context.Background())
	h := &held{
		attempt: c.Attempt, ended: make(chan struct{}), cancel: cancel, followers: 1,
		p: placement.Placement{
			ID: id, Request: c.Request, State: placement.Loading, Attempt: c.Attempt, Node: a.Name, Device: "cpu-0", Runtime: "vllm",
			Worker: fmt.Sprintf("w-%s-%d", id, c.Attempt), Tier: placement.TierWarm, Endpoint: "http://127.0.0.1:8000", Updated: time.Now(),
		},
	}
	a.held[id] = h
	a.changed()
	a.History.add(Interval{Node: a.Name, Placement: id, Attempt: c.Attempt, From: time.Now()})
	go a.run(ctx, h, id, c)
	return h, nil
}

func (a *Agent) run(ctx context.Context, h *held, id string, c agentapi.Claim) {
	var err error
	if a.Start != nil {
		err = a.Start(ctx, id, c)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held[id] != h {
		return
	}
	if err != nil {
		a.end(h, placement.Failed, err.Error())
		return
	}
	h.p.State, h.p.StartSeconds, h.p.Updated = placement.Ready, 0.5, time.Now()
	if h.orphaned != nil {
		h.orphaned.Stop()
	}
	now, p := a.capacity(), h.p
	h.line = placement.Progress{Event: placement.EventReady, Placement: &p, Capacity: &now}
	close(h.ended)
}

// end takes a placement off its slot. The caller holds a.mu.
func (a *Agent) end(h *held, st placement.State, reason string) {
	delete(a.held, h.p.ID)
	h.cancel()
	wasReady := h.p.State == placement.Ready
	h.p.State, h.p.Reason, h.p.Updated = st, reason, time.Now()
	a.past[h.p.ID] = h.p
	a.changed()
	a.History.close(a.Name, h.p.ID, h.attempt, time.Now())
	if !wasReady {
		now, p := a.capacity(), h.p
		h.line = placement.Progress{Event: placement.EventFailed, Placement: &p, Capacity: &now, Error: placement.Errorf(placement.CodeStartFailed, "%s", reason)}
		if st == placement.Released {
			h.line.Event, h.line.Error = placement.EventReleased, nil
		}
		close(h.ended)
	}
}

func (a *Agent) unfollow(h *held) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h.followers--
	if h.followers == 0 && h.p.State == placement.Loading {
		h.orphaned = time.AfterFunc(a.OrphanGrace, func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.held[h.p.ID] == h && h.followers == 0 && h.p.State == placement.Loading {
				a.end(h, placement.Failed, "nobody asked for it for a while")
			}
		})
	}
}

// Release is DELETE /v1/placements/{id}.
func (a *Agent) Release(id string) (placement.Placement, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.held[id]; h != nil {
		a.end(h, placement.Released, "released")
	}
	p := a.past[id]
	if p.ID == "" {
		p = placement.Placement{ID: id, State: placement.Released, Node: a.Name}
	}
	return p, nil
}

// Rest has a model sleep, or wake.
func (a *Agent) Rest(id string, asleep bool) (placement.Placement, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.held[id]
	if h == nil {
		return placement.Placement{}, placement.Errorf(placement.CodeNotFound, "no placement %s on node %s", id, a.Name)
	}
	if h.p.Sleeping != asleep {
		h.p.Sleeping = asleep
		a.changed()
	}
	return h.p, nil
}

// Kill makes the engine of a placement die.
func (a *Agent) Kill(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.held[id]; h != nil {
		a.end(h, placement.Failed, "engine died: signal 9")
	}
}

// Forget makes the node lose its memory, as a wiped disk does; a new epoch begins.
func (a *Agent) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.held {
		a.end(h, placement.Failed, "host lost")
	}
	clear(a.past)
	clear(a.highest)
	a.epoch++
	a.changed()
}

// SetDrain makes the node refuse claims.
func (a *Agent) SetDrain(on bool) placement.Capacity {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drain = on
	a.changed()
	return a.capacity()
}

// Held lists what the node holds.
func (a *Agent) Held() []placement.Placement {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]placement.Placement, 0, len(a.held))
	for _, h := range a.held {
		out = append(out, h.p)
	}
	return out
}

// Get is one placement the node holds or remembers.
func (a *Agent) Get(id string) (placement.Placement, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.held[id]; h != nil {
		return h.p, nil
	}
	if p, ok := a.past[id]; ok {
		return p, nil
	}
	return placement.Placement{}, placement.Errorf(placement.CodeNotFound, "no placement %s on node %s", id, a.Name)
}

// changed counts a change. The caller holds a.mu.
func (a *Agent) changed() {
	a.gen++
	if a.OnChange != nil {
		a.OnChange(a.capacity())
	}
}

// errCut is what a caller sees of a broken connection.
var errCut = io.ErrUnexpectedEOF
