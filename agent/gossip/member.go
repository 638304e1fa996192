package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"warmd/placement"
)

// Member is one member of the fleet. Its [View] is embedded: Fleet, Apply,
// MarkUnreachable and Changed work before, while and after Run runs.
type Member struct {
	*View
	cfg Config
	log *slog.Logger

	mu   sync.Mutex
	word placement.Capacity // what SetCapacity said last, owned by nobody else

	// published is what peers were told last; memberlist's goroutines read it.
	published atomic.Pointer[summary]
	dirty     chan struct{} // to the publisher, capacity 1
	untold    chan struct{} // to the teller, capacity 1

	ring *memberlist.Keyring // nil: not encrypted; changed under mu

	warned atomic.Int64 // when strangeWord last wrote a line, Unix seconds

	list    *memberlist.Memberlist // set by Run, with addr, before up is closed
	addr    string
	up      chan struct{}
	running atomic.Bool
}

// summary is one published word. Invariant: len(meta) <= placement.MaxMeta.
type summary struct {
	meta       []byte
	epoch      int64
	generation uint64
}

// New makes a member; Run starts it.
func New(cfg Config) (*Member, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("make gossip member: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Label == "" {
		cfg.Label = DefaultLabel
	}
	m := &Member{
		View: NewView(cfg.Name), cfg: cfg, log: cfg.Log.With("part", "gossip"),
		dirty: make(chan struct{}, 1), untold: make(chan struct{}, 1), up: make(chan struct{}),
	}
	if len(cfg.Keys) > 0 {
		var err error
		if m.ring, err = memberlist.NewKeyring(cfg.Keys, cfg.Keys[0]); err != nil {
			return nil, fmt.Errorf("make keyring: %w", err)
		}
	}
	// A member that never has a capacity (a coordinator alone) still has lives to be
	// told apart: milliseconds, which are below the nanoseconds of every agent.
	m.SetCapacity(placement.Capacity{Epoch: time.Now().UnixMilli()})
	return m, nil
}

// SetCapacity says what this node has now. It never blocks; the latest wins. The
// caller may go on changing its own copy.
func (m *Member) SetCapacity(c placement.Capacity) {
	c = clone(c)
	c.Node, c.Coordinator, c.Summary = m.cfg.Name, m.cfg.Coordinator, false
	m.mu.Lock()
	m.word = c
	m.setSelf(c) // under mu: two callers must not leave the view with the older one
	m.mu.Unlock()
	poke(m.dirty)
	poke(m.untold)
}

// latest is the word to send.
func (m *Member) latest() placement.Capacity {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.word
}

// Up is closed when the member listens: from then on Addr is known.
func (m *Member) Up() <-chan struct{} { return m.up }

// Addr is the advertised gossip address, empty before Up.
func (m *Member) Addr() string {
	select {
	case <-m.up:
		return m.addr
	default:
		return ""
	}
}

// Run is the member's life: it listens, joins, tells, and when ctx ends says
// farewell (bounded by a few seconds). It can run once.
func (m *Member) Run(ctx context.Context) (err error) {
	if m.running.Swap(true) {
		return errors.New("run gossip: a member runs once, make a new one")
	}
	var teardown []func()
	defer func() {
		for _, step := range slices.Backward(teardown) {
			step()
		}
	}()
	tr, port, err := m.listen()
	if err != nil {
		return err
	}
	lib, err := m.cfg.library(tr, port, m.ring)
	if err != nil {
		return errors.Join(err, tr.Shutdown())
	}
	d := &delegate{m: m}
	lib.Delegate, lib.Events, lib.Ping, lib.Conflict = d, d, d, d
	told := m.latest()
	m.announce(told)
	list, err := memberlist.Create(lib)
	if err != nil {
		return errors.Join(fmt.Errorf("start gossip on port %d: %w (if no address was found, set the advertise address)", port, err), tr.Shutdown())
	}
	teardown = append(teardown, func() { _ = list.Shutdown() })
	m.list, m.addr = list, list.LocalNode().Address()
	close(m.up)
	m.log.Info("gossip listens", "addr", m.Addr(), "encrypted", lib.EncryptionEnabled())

	// A dial under way can outlast the farewell by tcpTimeout: wait for the joiner
	// and the post last, for the two that feed them first.
	var feeding, dialing sync.WaitGroup
	teardown = slices.Insert(teardown, 0, dialing.Wait)
	teardown = append(teardown, m.leave)
	post := newPost(m.send)
	dialing.Go(func() { post.run(ctx) })
	dialing.Go(func() { m.joiner(ctx) })
	feeding.Go(func() { m.publisher(ctx, told) })
	feeding.Go(func() { m.teller(ctx, post) })
	teardown = append(teardown, feeding.Wait)
	<-ctx.Done()
	return nil
}

// leave tells the others that this is no crash: each of them by one packet, since
// memberlist's own farewell looks like a failure to a delegate.
func (m *Member) leave() {
	for _, p := range m.others() {
		_ = m.list.SendBestEffort(p.node(), append([]byte{farewell}, m.cfg.Name...))
	}
	if err := m.list.Leave(leaveTimeout); err != nil {
		m.log.Warn("leave fleet: nobody may have heard it, peers will notice by probing", "err", err)
	}
}

// clone copies what a caller could still change.
func clone(c placement.Capacity) placement.Capacity {
	c.Devices, c.Runtimes = slices.Clone(c.Devices), slices.Clone(c.Runtimes)
	for i := range c.Devices {
		c.Devices[i].Warm = maps.Clone(c.Devices[i].Warm)
		c.Devices[i].Placements = slices.Clone(c.Devices[i].Placements)
	}
	return c
}
