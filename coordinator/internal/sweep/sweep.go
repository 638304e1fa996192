// Package sweep repairs what nobody works on any more. One coordinator of a fleet is
// elected to do it ([Election]); every record it writes is fenced on the key that
// elected it, so that a sweeper that slept through the end of its lease writes
// nothing. It looks for
//
//	assigned records whose owner is dead or long overdue: taken over, then finished by
//	   the placer with the same PUT as ever
//	ready records whose agent says failed or released, or knows nothing: ended, with
//	   the agent's reason
//	ready records on a node that nobody has heard of for NodeGone: failed
//	workers whose record names another node, a later attempt or an end: released
//	ready workers that no record names at all: recorded again (see adopt)
//	records that ended Retention ago: deleted, and with them their request id
//
// It never kills a worker because etcd or the fleet is unwell: a release needs a
// linearizable read that names another truth, and silence is not one.
package sweep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// Records is what the sweeper asks of the store; every write is fenced.
type Records interface {
	Create(ctx context.Context, r store.Record, f store.Fence) (store.Record, error)
	Update(ctx context.Context, r store.Record, f store.Fence) (store.Record, error)
	Delete(ctx context.Context, r store.Record, f store.Fence) error
	Get(ctx context.Context, id string) (store.Record, error)
	// List is every record, as etcd has it now.
	List(ctx context.Context) ([]store.Record, error)
}

// Agents is what the sweeper asks of agents. Held fails while a node has not looked
// at all its devices yet: an incomplete list would read as loss.
type Agents interface {
	Held(ctx context.Context, node, addr string) ([]placement.Placement, error)
	Ask(ctx context.Context, node, addr, id string) (placement.Placement, error)
	Release(ctx context.Context, node, addr, id string, grace time.Duration) (placement.Placement, error)
}

// Effects is the world outside the sweeper.
type Effects interface {
	Records
	Agents
	// All is every record, as far as this coordinator has heard.
	All() []store.Record
	Fleet() placement.Fleet
	// Living names the coordinator instances that are alive.
	Living(ctx context.Context) (map[string]bool, error)
	// Resume goes on with a record that this instance owns.
	Resume(r store.Record) bool
}

// Config bounds a sweeper. Zero values take the defaults.
type Config struct {
	// Instance is this coordinator's: the owner it writes into records.
	Instance string
	// Every is the pause between two passes (2 s), Reconcile between two questions to
	// the same node (30 s).
	Every, Reconcile time.Duration
	// NodeGone is how long a node is silent before its ready placements are failed
	// (10 min): its engines may well go on serving meanwhile.
	NodeGone time.Duration
	// Overdue is how long after its deadline an assigned record with a living owner
	// is taken from it (1 min).
	Overdue time.Duration
	// Retention is how long a record is kept after its end (24 h): as long as its
	// request id must be known.
	Retention time.Duration
	// DrainGrace is given to a worker that is released because no record names it (30 s).
	DrainGrace time.Duration

	Log  *slog.Logger
	Emit func(placement.Event)
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.Every, 2*time.Second)
	def(&c.Reconcile, 30*time.Second)
	def(&c.NodeGone, 10*time.Minute)
	def(&c.Overdue, time.Minute)
	def(&c.Retention, 24*time.Hour)
	def(&c.DrainGrace, 30*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Emit == nil {
		c.Emit = func(placement.Event) {}
	}
	return c
}

// Sweeper is the elected one's work. It is two loops: one takes over what a dead
// coordinator left, which asks nobody but etcd and so is never late; the other asks
// nodes, of which some may not answer.
type Sweeper struct {
	cfg    Config
	fx     Effects
	orphan chan struct{}
	node   chan struct{}
}

// New makes a sweeper; it starts nothing.
func New(cfg Config, fx Effects) *Sweeper {
	return &Sweeper{cfg: cfg.withDefaults(), fx: fx, orphan: make(chan struct{}, 1), node: make(chan struct{}, 1)}
}

// CoordinatorGone asks to take over soon what one left. It never blocks.
func (s *Sweeper) CoordinatorGone() { poke(s.orphan) }

// NodeChanged asks to look at nodes soon: one came or went. It never blocks.
func (s *Sweeper) NodeChanged() { poke(s.node) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Lead sweeps until ctx ends or a write is refused because another one leads.
func (s *Sweeper) Lead(ctx context.Context, fence store.Fence) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := term{Sweeper: s, fence: fence, ctx: ctx, silent: map[string]time.Time{}, nodes: map[string]*nodeMemory{}, releasing: map[string]bool{}}
	defer t.wg.Wait()
	s.cfg.Log.Info("this coordinator sweeps", "instance", s.cfg.Instance)
	var loops sync.WaitGroup
	for _, l := range []struct {
		wake  <-chan struct{}
		parts []part
	}{
		{s.orphan, []part{t.unfinished}},
		{s.node, []part{t.deadNodes, t.reconcile, t.retain}},
	} {
		loops.Go(func() {
			defer cancel() // who loses the election loses it for both
			t.loop(ctx, l.wake, l.parts)
		})
	}
	loops.Wait()
}

// term is one leadership: what it remembers ends with it.
type term struct {
	*Sweeper
	fence store.Fence
	ctx   context.Context // the leadership's, for what goes on beside the passes

	// The orphans' loop's own.
	living map[string]bool // who was alive when all of etcd was last read; nil before

	// The nodes' loop's own.
	silent map[string]time.Time // since when a node that records name is not alive
	nodes  map[string]*nodeMemory

	wg        sync.WaitGroup
	mu        sync.Mutex // guards releasing
	releasing map[string]bool
}

// part is one kind of repair.
type part func(context.Context, []store.Record, placement.Fleet) error

// loop makes a pass every now and then, and when it is woken, until ctx ends or the
// election is lost.
func (t *term) loop(ctx context.Context, wake <-chan struct{}, parts []part) {
	tick := time.NewTicker(t.cfg.Every)
	defer tick.Stop()
	said := ""
	for {
		switch err := t.pass(ctx, parts); {
		case errors.Is(err, store.ErrFenced):
			t.cfg.Log.Warn("another coordinator sweeps now", "instance", t.cfg.Instance)
			return
		case err != nil && ctx.Err() == nil && err.Error() != said:
			said = err.Error() // once: a pass comes every few seconds
			t.cfg.Log.Info("sweep is not complete yet", "reason", err)
		case err == nil:
			said = ""
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		}
	}
}

// pass does everything once. An error of one part does not keep the others from
// running, the loss of the election does.
func (t *term) pass(ctx context.Context, parts []part) error {
	records := t.fx.All()
	fleet := t.fx.Fleet()
	var errs []error
	for _, part := range parts {
		err := part(ctx, records, fleet)
		if errors.Is(err, store.ErrFenced) || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// maxDeletes bounds one pass, so that a day's worth does not fall on etcd at once.
const maxDeletes = 100

// retain deletes records that ended long ago.
func (t *term) retain(ctx context.Context, records []store.Record, _ placement.Fleet) error {
	deleted := 0
	for _, r := range records {
		if !r.State.Terminal() || time.Since(r.Updated) < t.cfg.Retention || deleted >= maxDeletes {
			continue
		}
		deleted++
		if err := t.fx.Delete(ctx, r, t.fence); err != nil && !errors.Is(err, store.ErrChanged) {
			return fmt.Errorf("delete %s: %w", r.ID, err)
		}
	}
	return nil
}
