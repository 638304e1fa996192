package placer

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	agentapi "warmd/agent/api"
	"warmd/coordinator/internal/agenttest"
	"warmd/coordinator/internal/store"
	"warmd/placement"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// effects joins the fakes to the world of one placer. before is asked before each
// effect, by name: it can cut the coordinator down between any two steps.
type effects struct {
	*store.Mem
	*store.Mirror
	*agenttest.Nodes
	before func(op string)
	// loseCreate makes creations succeed and their answers get lost.
	loseCreate bool
}

func (e *effects) step(op string) {
	if e.before != nil {
		e.before(op)
	}
}

func (e *effects) Create(ctx context.Context, r store.Record, f store.Fence) (store.Record, error) {
	e.step("create")
	got, err := e.Mem.Create(ctx, r, f)
	e.step("created")
	if e.loseCreate && err == nil {
		return store.Record{}, placement.Errorf(placement.CodeUnavailable, "etcd did not answer in time")
	}
	return got, err
}

func (e *effects) Update(ctx context.Context, r store.Record, f store.Fence) (store.Record, error) {
	e.step("update " + string(r.State))
	return e.Mem.Update(ctx, r, f)
}

func (e *effects) Claim(ctx context.Context, node, addr, id string, c agentapi.Claim, each func(placement.Progress) bool) error {
	e.step("claim")
	return e.Nodes.Claim(ctx, node, addr, id, c, func(l placement.Progress) bool {
		e.step("line " + l.Event)
		return ctx.Err() == nil && each(l)
	})
}

// rig is one store, one fleet, and any number of placers over them.
type rig struct {
	t       *testing.T
	mem     *store.Mem
	agents  []*agenttest.Agent
	history *agenttest.History
	wg      sync.WaitGroup
	stops   []context.CancelFunc

	mu      sync.Mutex
	illegal []string
}

// bubble runs f in fake time with a rig of n1..nN, one slot each.
func bubble(t *testing.T, nodes int, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, mem: store.NewMem(), history: &agenttest.History{}}
		for i := range nodes {
			r.agents = append(r.agents, agenttest.New(fmt.Sprintf("n%d", i+1), 1, r.history))
		}
		f(r)
		for _, stop := range r.stops {
			stop()
		}
		r.wg.Wait()
		for _, a := range r.agents {
			for _, p := range a.Held() {
				_, _ = a.Release(p.ID)
			}
		}
		slots := map[string]int{}
		for _, a := range r.agents {
			slots[a.Name] = a.Slots
		}
		require.Empty(t, r.history.Check(slots))
		require.Empty(t, r.illegal)
	})
}

// coordinator is one placer with its own view of the rig's fleet.
type coordinator struct {
	*Placer
	fx   *effects
	kill context.CancelFunc
	done chan struct{}
}

func (r *rig) coordinator(name string, change ...func(*Config)) *coordinator {
	ctx, cancel := context.WithCancel(r.t.Context())
	c := &coordinator{kill: cancel, done: make(chan struct{})}
	c.fx = &effects{Mem: r.mem, Mirror: store.NewMirror(), Nodes: agenttest.NewNodes(r.agents...)}
	cfg := Config{Instance: name, Log: slog.New(&complaints{r: r})}
	for _, f := range change {
		f(&cfg)
	}
	c.Placer = New(cfg, c.fx)
	r.stops = append(r.stops, cancel)
	r.wg.Go(func() { _ = c.fx.Mirror.Run(ctx, r.mem) })
	r.wg.Go(func() { defer close(c.done); _ = c.Run(ctx) })
	r.wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.fx.Changed():
				c.Wake()
			}
		}
	})
	synctest.Wait()
	return c
}

// complaints fails the test on what the placer logs as an error: an illegal
// transition.
type complaints struct{ r *rig }

func (c *complaints) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }
func (c *complaints) WithAttrs([]slog.Attr) slog.Handler           { return c }
func (c *complaints) WithGroup(string) slog.Handler                { return c }
func (c *complaints) Handle(_ context.Context, rec slog.Record) error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.r.illegal = append(c.r.illegal, rec.Message)
	return nil
}

// outcome is how a placement ended for one caller.
type outcome struct {
	placement.Placement
	events []string
	err    error
	took   time.Duration
}

// place places and waits.
func (c *coordinator) place(ctx context.Context, r placement.Request) outcome {
	begin := time.Now()
	f, err := c.Place(r)
	if err != nil {
		return outcome{err: err}
	}
	var out outcome
	var last placement.Progress
	err = f.Follow(ctx, func(l placement.Progress) bool {
		out.events = append(out.events, l.Event)
		last = l
		if l.Placement != nil {
			out.Placement = *l.Placement
		}
		return true
	})
	out.err, out.took = err, time.Since(begin)
	if err == nil && last.Error != nil {
		out.err = last.Error
	}
	return out
}

func code(err error) placement.Code {
	if err == nil {
		return ""
	}
	return placement.AsError(err).Code
}

// stored is the record once everything has settled.
func (r *rig) stored(id string) store.Record {
	synctest.Wait()
	rec, err := r.mem.Get(context.Background(), id)
	require.NoError(r.t, err)
	return rec
}

func opt(id string) placement.Request { return placement.Request{ID: id, Model: "opt"} }
