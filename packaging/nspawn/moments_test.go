package nspawn

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

// A fault strikes at a moment in the life of one placement: shortly after its client
// has done or heard something. Which step and how shortly is random, by a seed.

// steps are what the client does or hears, and how long the next step takes.
var steps = []struct {
	name   string
	within time.Duration
}{
	{"asked", 25 * time.Millisecond}, {placement.EventAssigned, 15 * time.Millisecond}, {placement.EventAccepted, engineStarts},
	{placement.EventReady, 15 * time.Millisecond}, {"releasing", 40 * time.Millisecond},
}

// dice are the random choices of one test.
type dice struct{ *rand.Rand }

// newDice takes the seed from WARMD_TEST_SEED to repeat a test that has failed.
func newDice(t testing.TB) dice {
	seed := rand.Uint64()
	if s := os.Getenv("WARMD_TEST_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat with WARMD_TEST_SEED=%d", seed)
		}
	})
	return dice{rand.New(rand.NewPCG(seed, 0))}
}

// moment is the one of the round: each step has its turn.
func (d dice) moment(round int) moment {
	s := steps[round%len(steps)]
	return moment{s.name, d.some(s.within)}
}

// some is a random part of a duration.
func (d dice) some(most time.Duration) time.Duration { return time.Duration(d.Int64N(int64(most))) }

type moment struct {
	step  string
	after time.Duration
}

func (m moment) String() string {
	return fmt.Sprintf("%s + %s", m.step, m.after.Round(100*time.Microsecond))
}

// target is a placement that a fault is timed by. It goes through one coordinator
// first, and on through the others when that one fails.
type target struct {
	f       *fleet
	via     *node
	at      moment
	come    chan struct{} // closed at the moment
	strike  sync.Once
	placed  atomic.Bool
	release atomic.Bool
	told    chan *load.Told
}

// aim starts a placement.
func (f *fleet) aim(ctx context.Context, via *node, r placement.Request, at moment) *target {
	g := &target{f: f, via: via, at: at, come: make(chan struct{}), told: make(chan *load.Told, 1)}
	go func() {
		g.told <- load.One(ctx, g, load.Stream{Base: r, Patience: patience})
	}()
	return g
}

// now strikes after a while.
func (g *target) now(after time.Duration) {
	g.strike.Do(func() { time.AfterFunc(after, func() { close(g.come) }) })
}

func (g *target) on(step string) {
	if step == g.at.step {
		g.now(g.at.after)
	}
}

func (g *target) Place(ctx context.Context, r placement.Request) (placement.Placement, error) {
	if g.placed.Swap(true) {
		return g.f.Place(ctx, r)
	}
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	g.on(steps[0].name)
	p, err := g.via.coordinatorTCP.Place(ctx, r, "ready", func(l placement.Progress) { g.on(l.Event) })
	if err != nil {
		g.now(0) // whatever it was: the test must go on
	}
	return p, sure(err)
}

func (g *target) Release(ctx context.Context, id string) (placement.Placement, error) {
	if g.release.Swap(true) {
		return g.f.Release(ctx, id)
	}
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	g.on(steps[4].name)
	p, err := g.via.coordinatorTCP.Release(ctx, id, 0)
	g.now(0)
	return p, sure(err)
}
