// Package placer puts models on nodes. One placement is four steps, and place.go
// has them as four calls:
//
//	choose   from the view in memory, less our own claims that no node has
//	         answered yet; nothing free and wait_capacity set: queue   0 round trips
//	write    the record to etcd, if the request id and the record are
//	         absent, or the record is as we read it                    1 round trip
//	claim    PUT to the agent and follow the same answer               1 round trip, open
//	conclude ready: answer, and write it behind the answer; refused: take the fresh
//	         capacity and go to the next candidate with Attempt+1
//
// Before them a model that sleeps, and was asked for in the same words, is woken (wake.go).
//
// First try, retry and recovery are the same PUT. When its outcome is unknown it is
// sent to the same node again before another node is tried.
//
// # Who may act
//
// A record has an owner, the coordinator instance that finishes it. Whoever wants
// to go on with a foreign record writes itself there first, so that the old owner's
// next write fails; a placer whose write fails stops acting and only watches.
//
//	two writers of one record:        compare-and-set orders them
//	two claims of one placement:      the agent refuses the lower attempt
//	two claims of one slot:           the agent's device loop accepts one
//
// A second caller with the same request id follows the first one's placement.
package placer

import (
	"context"
	"log/slog"
	"sync"
	"time"

	agentapi "warmd/agent/api"
	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// Records is what the placer asks of the store.
type Records interface {
	Create(ctx context.Context, r store.Record, f store.Fence) (store.Record, error)
	Update(ctx context.Context, r store.Record, f store.Fence) (store.Record, error)
	Join(ctx context.Context, r store.Record, requestID string) (store.Record, error)
	Delete(ctx context.Context, r store.Record, f store.Fence) error
	Get(ctx context.Context, id string) (store.Record, error)
	ByRequest(ctx context.Context, requestID string) (store.Record, error)
	// Await returns the record once its revision is not rev, or store.ErrNotFound
	// once it is gone.
	Await(ctx context.Context, id string, rev int64) (store.Record, error)
}

// Agents is what the placer asks of agents.
type Agents interface {
	// Claim sends the PUT and calls each for every line. A refusal is a
	// *placement.Error with another code than unavailable; every other error means
	// that the outcome is unknown.
	Claim(ctx context.Context, node, addr, id string, c agentapi.Claim, each func(placement.Progress) bool) error
	Release(ctx context.Context, node, addr, id string, grace time.Duration) (placement.Placement, error)
	// Wake returns when a token came out of a model that slept, or was awake already.
	Wake(ctx context.Context, node, addr, id, traceparent string) (placement.Placement, error)
}

// View is the fleet as this coordinator sees it. The placer calls it with its lock
// held: it must not call back.
type View interface {
	Fleet() placement.Fleet
	Apply(placement.Capacity)
	MarkUnreachable(node string)
}

// Effects is the world outside the placer.
type Effects interface {
	Records
	Agents
	View
}

// Config bounds a placer. Zero values take the defaults.
type Config struct {
	// Instance names this life of this coordinator: the owner in its records.
	Instance string
	// MaxQueue bounds requests that wait for capacity (1024), MaxFlights all
	// placements under way (8192).
	MaxQueue, MaxFlights int
	// ClaimTimeout bounds PUT -> first line (5 s).
	ClaimTimeout time.Duration
	// LostBefore is how long a node that does not answer is asked again before the
	// next one is tried (2 s); LostAlone the same when there is no other (15 s);
	// LostAfter the same once it had accepted (30 s: as long as the agent waits for
	// its coordinator).
	LostBefore, LostAlone, LostAfter time.Duration
	// Grace is how long after the deadline the agent's own word is waited for, since
	// it has the last log lines (5 s).
	Grace time.Duration

	Log *slog.Logger
	// Emit takes events for people; Observe seconds by phase (choose, txn, claim);
	// Done every placement that ended, with its result. All may be nil.
	Emit    func(placement.Event)
	Observe func(phase string, d time.Duration)
	Done    func(result string, p placement.Placement)
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.ClaimTimeout, 5*time.Second)
	def(&c.LostBefore, 2*time.Second)
	def(&c.LostAlone, 15*time.Second)
	def(&c.LostAfter, 30*time.Second)
	def(&c.Grace, 5*time.Second)
	if c.MaxQueue <= 0 {
		c.MaxQueue = 1024
	}
	if c.MaxFlights <= 0 {
		c.MaxFlights = 8192
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Emit == nil {
		c.Emit = func(placement.Event) {}
	}
	if c.Observe == nil {
		c.Observe = func(string, time.Duration) {}
	}
	if c.Done == nil {
		c.Done = func(string, placement.Placement) {}
	}
	return c
}

// Placer runs placements. Make it with [New], give it life with [Placer.Run].
type Placer struct {
	cfg Config
	fx  Effects

	wg sync.WaitGroup
	mu sync.Mutex // guards all below; never held over a call to etcd or an agent
	// base is the life of every placement: Run's context, nil before Run.
	base      context.Context
	closed    bool // Run is over: nothing begins any more
	byRequest map[string]*Flight
	byID      map[string]*Flight
	overlay   overlay
	queue     []*start // sorted by seq
	streams   map[*start]context.CancelFunc
	seq       uint64
	// abandoned are ids whose creation failed with an unknown outcome: if such a
	// record shows up it is deleted, since its caller was told no.
	abandoned map[string]bool
}

// New makes a placer; it starts nothing.
func New(cfg Config, fx Effects) *Placer {
	return &Placer{
		cfg: cfg.withDefaults(), fx: fx, overlay: overlay{},
		byRequest: map[string]*Flight{}, byID: map[string]*Flight{}, abandoned: map[string]bool{},
		streams: map[*start]context.CancelFunc{},
	}
}

// Run lets placements begin and blocks until ctx ends and each of them has let go.
// A placement that is cut off stays as it is recorded: another coordinator, or the
// next life of this one, finishes it.
func (p *Placer) Run(ctx context.Context) error {
	p.mu.Lock()
	p.base = ctx
	p.mu.Unlock()
	<-ctx.Done()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Wait()
	return nil
}

// Place starts a placement, or joins the one that the request id names here.
func (p *Placer) Place(r placement.Request) (*Flight, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	r = r.Normalize()
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.byRequest[r.ID]; f != nil && r.ID != "" {
		if !f.req.Same(r) {
			return nil, conflict(r.ID, f.placementID(), f.req)
		}
		return f, nil
	}
	if err := p.admit(); err != nil {
		return nil, err
	}
	s := p.newStart(r, p.freshID())
	if r.ID != "" {
		p.byRequest[r.ID] = s.f
	}
	p.launch(s)
	return s.f, nil
}

// Resume goes on with a stored record that this instance owns and nobody works on:
// one taken over from a dead coordinator, or one of ours that was cut off. It
// reports whether there was anything to do.
func (p *Placer) Resume(rec store.Record) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if rec.State != placement.Assigned || rec.Owner != p.cfg.Instance || p.byID[rec.ID] != nil || p.admit() != nil {
		return false
	}
	if p.abandoned[rec.ID] {
		p.wg.Go(func() { p.forget(p.base, rec.ID) })
		return true
	}
	s := p.newStart(rec.Request.Normalize(), rec.ID)
	s.adopt(rec)
	if id := rec.Request.ID; id != "" && p.byRequest[id] == nil {
		p.byRequest[id] = s.f
	}
	p.launch(s)
	return true
}

// Decide is a dry run: what would be chosen now, and why not the others.
func (p *Placer) Decide(r placement.Request) (placement.Decision, error) {
	if err := r.Validate(); err != nil {
		return placement.Decision{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	nodes := placement.NewSnapshot(p.fx.Fleet().Nodes, nil).Nodes
	snapshot := placement.Snapshot{Nodes: nodes, Claims: p.overlay.counts(nodes)}
	d := placement.Choose(snapshot, r)
	if c, ok := placement.Asleep(snapshot, r); ok {
		d.Candidates = append([]placement.Candidate{c}, d.Candidates...)
	}
	return d, nil
}

// Live is what the placements under way here are like at this moment, by id, which may
// be newer than their records: loading is never stored, ready is stored behind the
// answer. Ask before the record is read: whoever is not here any more has settled.
func (p *Placer) Live() map[string]placement.Placement {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := make(map[string]placement.Placement, len(p.byID))
	for id, f := range p.byID {
		if cur, ok := f.current(); ok {
			live[id] = cur
		}
	}
	return live
}

// Counts is how many placements wait for capacity, and how many are under way.
func (p *Placer) Counts() (queued, flights int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue), len(p.byID)
}

// admit checks that another placement may begin. The caller holds p.mu.
func (p *Placer) admit() error {
	switch {
	case p.base == nil || p.closed:
		return placement.Errorf(placement.CodeUnavailable, "this coordinator is not running").WithHint("ask another one, or again in a moment with the same request id")
	case len(p.byID) >= p.cfg.MaxFlights:
		return placement.Errorf(placement.CodeUnavailable, "%d placements are under way here, the most that is allowed", p.cfg.MaxFlights).WithHint("ask again in a moment")
	}
	return nil
}

// launch runs s. The caller holds p.mu.
func (p *Placer) launch(s *start) {
	p.byID[s.id] = s.f
	p.wg.Go(func() {
		s.run(p.base)
		p.mu.Lock()
		delete(p.byID, s.id)
		if p.byRequest[s.req.ID] == s.f {
			delete(p.byRequest, s.req.ID)
		}
		p.mu.Unlock()
	})
}

// newStart makes a start and its flight. The caller holds p.mu.
func (p *Placer) newStart(r placement.Request, id string) *start {
	p.seq++
	now := time.Now()
	return &start{
		p: p, f: newFlight(r, now), id: id, req: r, seq: p.seq, deadline: now.Add(r.Timeout()),
		tried: map[placement.SlotKey]mark{}, given: make(chan struct{}, 1),
	}
}
