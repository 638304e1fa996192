package nspawn

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"warmd/packaging/nspawn/host"
	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

// Promise 5 of issue 4: whatever happens to one coordinator or one member of etcd, at
// any step of a placement, none is lost and none is doubled.

const takeoverWithin = 6 * time.Second

// stream keeps placements coming for as long as the faults last. Few are kept: a fleet
// that is full would place nothing more.
func (f *fleet) stream(t *testing.T, id string) *load.Placements {
	return load.Place(t.Context(), f, load.Stream{Base: request(id), PerSecond: 2, Keep: 15, Patience: patience})
}

// request is what the clients of faults ask for.
func request(id string) placement.Request {
	return placement.Request{ID: id, Name: id, Model: "any", Runtime: engineRuntime, WaitCapacity: true, TimeoutSeconds: 90}
}

func killedCoordinators(t *testing.T, f *fleet) {
	d, h, stream := newDice(t), f.watch(t), f.stream(t, f.id("kc"))
	var took, waited []time.Duration
	var told []*load.Told
	for round := range f.rounds(10, 4) {
		victim := f.leader(t)
		if round/len(steps)%2 == 1 || !f.thorough && round%2 == 1 {
			victim = f.after(victim)
		}
		at := d.moment(round)
		kill := victim.signaller(t, coordinatorUnit)
		g := f.aim(t.Context(), victim, request(fmt.Sprintf("%s-%d", f.id("kc-target"), round)), at)
		<-g.come
		fault := kill(syscall.SIGKILL)
		was := <-g.told
		told, waited = append(told, was), append(waited, was.Took)
		t.Logf("%s killed at %s: ready after %s, %d tries", victim.Name, at, was.Took.Round(time.Millisecond), was.Tries)
		took = append(took, f.untilTakenOver(t, h, victim, fault)...)
		f.untilCoordinates(t, victim)
	}
	f.prove(t, f.id("kc"), append(stream.Stop(), told...))
	f.figures("takeover_seconds_after_kill", took)
	f.figures("placed_seconds_across_a_kill", waited)
	f.assertBelow(t, takeoverWithin, took, "takeover")
}

func killedEtcdMembers(t *testing.T, f *fleet) {
	d, stream := newDice(t), f.stream(t, f.id("ke"))
	var waited []time.Duration
	var told []*load.Told
	for round := range f.rounds(10, 4) {
		victim := f.etcdLeader(t)
		if round%2 == 1 {
			victim = f.after(victim)
		}
		at := d.moment(round)
		kill := victim.signaller(t, etcdUnit)
		g := f.aim(t.Context(), f.nodes[d.IntN(len(f.nodes))], request(fmt.Sprintf("%s-%d", f.id("ke-target"), round)), at)
		<-g.come
		kill(syscall.SIGKILL)
		was := <-g.told
		told, waited = append(told, was), append(waited, was.Took)
		t.Logf("etcd of %s killed at %s: ready after %s, %d tries", victim.Name, at, was.Took.Round(time.Millisecond), was.Tries)
		victim.WaitUnit(t, etcdUnit, "active", 30*time.Second)
	}
	f.prove(t, f.id("ke"), append(stream.Stop(), told...))
	f.figures("placed_seconds_across_an_etcd_kill", waited)
}

// untilTakenOver waits until nothing is left that the dead coordinator had begun.
func (f *fleet) untilTakenOver(t *testing.T, h *history, victim *node, fault time.Time) (took []time.Duration) {
	t.Helper()
	host.Until(t, takeoverWithin+20*time.Second, "all is taken over from "+victim.Name, func() error {
		var orphans int
		if took, orphans = h.takeovers(victim, fault); orphans > 0 {
			return fmt.Errorf("%d are not", orphans)
		}
		return nil
	})
	return took
}

// untilCoordinates waits until a coordinator that was away takes part again.
func (f *fleet) untilCoordinates(t *testing.T, n *node) {
	t.Helper()
	host.Until(t, 30*time.Second, "the coordinator of "+n.Name+" is back", func() error { return f.takesPart(t, n) })
}

// assertBelow holds a promise to its bound, and to the time for which the machine that
// all the hosts share stood still.
func (f *fleet) assertBelow(t *testing.T, bound time.Duration, took []time.Duration, what string) {
	t.Helper()
	if stood := f.stood.Longest(); len(took) > 0 {
		assert.LessOrEqual(t, slices.Max(took), bound+stood, "%s: %v; the machine stood still for %s", what, took, stood)
	}
}
