package nspawn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

const (
	lossWithin      = 15 * time.Second
	reconcileWithin = 10 * time.Second
	// patient is how much longer a test waits before it gives up: a promise that is
	// missed by a little should say by how much.
	patient = 30 * time.Second
)

// cuts are the ways in which a host is cut off from the others.
var cuts = []struct {
	name string
	do   func(*testing.T, *node, []*host.Host)
	role func(*fleet, testing.TB) *node
}{
	{"elected coordinator's host, both ways", func(t *testing.T, n *node, others []*host.Host) { n.Partition(t, others...) }, (*fleet).leader},
	{"etcd leader's host, it is heard but hears nothing", func(t *testing.T, n *node, others []*host.Host) {
		for _, o := range others {
			o.Drop(t, n.Host)
		}
	}, (*fleet).etcdLeader},
	{"elected coordinator's host, it hears but is not heard", func(t *testing.T, n *node, others []*host.Host) { n.Drop(t, others...) }, (*fleet).leader},
	{"etcd leader's host, both ways", func(t *testing.T, n *node, others []*host.Host) { n.Partition(t, others...) }, (*fleet).etcdLeader},
}

// partitionedHosts cuts hosts off until everybody has noticed, and heals. Its agent,
// coordinator and member of etcd go together.
func partitionedHosts(t *testing.T, f *fleet) {
	d, stream := newDice(t), f.stream(t, f.id("pa"))
	var told []*load.Told
	var took, withEtcd, noticed, reconciled []time.Duration
	for round, cut := range cuts[:f.rounds(len(cuts), 1)] {
		leading := f.after(f.leader(t))
		f.etcdWhole(t, leading)
		victim := cut.role(f, t)
		others := f.others(victim)
		h, whole := f.watch(t, f.without(victim)...), f.kv
		f.kv = f.etcd.client(t, f.without(victim)...)
		id := func(what string) string { return fmt.Sprintf("%s-%s-%d", f.id("pa"), what, round) }
		stays, released, dies := f.put(t, id("stays"), victim), f.put(t, id("released"), victim), f.put(t, id("dies"), victim)
		before := enginesOf(t, victim, stays.Request.ID)

		r := slowRequest(id("target"))
		r.Node = f.after(victim).Name
		g := f.aim(t.Context(), victim, r, moment{placement.EventAccepted, d.some(time.Second)})
		<-g.come
		cut.do(t, victim, others)
		fault := time.Now()
		lost := f.untilLost(t, victim, fault)
		noticed = append(noticed, lost)
		if taken := f.untilTakenOver(t, h, victim, fault); victim == leading {
			withEtcd = append(withEtcd, taken...)
		} else {
			took = append(took, taken...)
		}
		told = append(told, <-g.told)

		f.releaseAway(t, victim, released)
		for _, p := range enginesOf(t, victim, dies.Request.ID) {
			require.NoError(t, syscall.Kill(p.Pid, syscall.SIGKILL))
		}
		victim.Heal(t, others...)
		back := f.untilReconciled(t, victim, time.Now(), func() error {
			if left := enginesOf(t, victim, released.Request.ID); len(left) > 0 {
				return fmt.Errorf("what was released meanwhile still runs: %v", left)
			}
			return f.isIn(t, dies, placement.Failed)
		})
		reconciled = append(reconciled, back)
		_ = f.kv.Close()
		f.kv = whole
		assert.Equal(t, before, enginesOf(t, victim, stays.Request.ID), "an engine serves, whatever the network does")
		assert.NoError(t, f.isIn(t, stays, placement.Ready))
		t.Logf("%s (%s): noticed after %s, reconciled after %s", cut.name, victim.Name, lost.Round(time.Millisecond), back.Round(time.Millisecond))
		told = append(told, stays.told())
	}
	f.prove(t, f.id("pa"), append(stream.Stop(), told...))
	f.figures("takeover_seconds_after_partition", took)
	f.figures("node_loss_seconds", noticed)
	f.figures("reconcile_seconds_after_partition", reconciled)
	f.assertBelow(t, lossWithin, noticed, "node loss noticed")
	f.assertBelow(t, reconcileWithin, reconciled, "reconciled")
	f.assertBelow(t, takeoverWithin, took, "takeover")
	f.figures("takeover_seconds_after_partition_with_etcd_leader", withEtcd)
	f.assertBelow(t, takeoverWithin, withEtcd, "takeover, with etcd's leader lost, too")
}

// powerLoss cuts the power of a host and boots it again.
func powerLoss(t *testing.T, f *fleet) {
	stream := f.stream(t, f.id("po"))
	victim := f.after(f.leader(t))
	dies := f.put(t, f.id("po-dies"), victim)
	fault := time.Now()
	require.NoError(t, victim.Kill())
	noticed := f.untilLost(t, victim, fault)
	require.NoError(t, victim.Start(t.Context()))
	victim.WaitUnit(t, "warmd-agent.service", "active", 60*time.Second)
	back := f.untilReconciled(t, victim, time.Now(), func() error { return f.isIn(t, dies, placement.Failed) })
	told := stream.Stop()
	f.figure("node_loss_seconds_after_power_loss", seconds(noticed))
	f.figure("reconcile_seconds_after_power_loss", seconds(back))
	f.assertBelow(t, lossWithin, []time.Duration{noticed}, "node loss noticed")
	f.assertBelow(t, reconcileWithin, []time.Duration{back}, "reconciled")
	// What ran there has ended with the host, and its clients were not promised more.
	f.prove(t, f.id("po"), slices.DeleteFunc(told, func(x *load.Told) bool { return f.diedWith(t, x, victim) }))
}

// diedWith reports whether a placement was lost with its host, and its record says so.
func (f *fleet) diedWith(t *testing.T, told *load.Told, n *node) bool {
	for _, p := range f.records(t) {
		if p.ID == told.ID {
			return told.Ready && p.Node == n.Name && p.State == placement.Failed
		}
	}
	return false
}

// kept is a placement that a test holds on to.
type kept struct{ placement.Placement }

func (k kept) told() *load.Told { return &load.Told{Request: k.Request.ID, ID: k.ID, Ready: true} }

// put places on a node.
func (f *fleet) put(t *testing.T, id string, n *node) kept {
	t.Helper()
	r := request(id)
	r.Node = n.Name
	told := load.One(t.Context(), f, load.Stream{Base: r, Keep: 1, Patience: patience})
	require.NoError(t, told.Err)
	return kept{placement.Placement{ID: told.ID, Request: r, Node: n.Name}}
}

func enginesOf(t testing.TB, n *node, name string) (found []host.Process) {
	for _, p := range engines(t, n.Host) {
		if served(p) == name {
			found = append(found, p)
		}
	}
	return found
}

// untilLost waits until every other member has called the node failed.
func (f *fleet) untilLost(t *testing.T, victim *node, fault time.Time) time.Duration {
	t.Helper()
	host.Until(t, lossWithin+patient, "the loss of "+victim.Name+" is noticed by all", func() error {
		for _, n := range f.without(victim) {
			for who, ask := range map[string]func(context.Context) (placement.Fleet, error){"agent": n.agent.Fleet, "coordinator": n.coordinator.Fleet} {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				view, err := ask(ctx)
				cancel()
				if err != nil {
					return err
				}
				for _, v := range view.Nodes {
					if v.Node == victim.Name && v.Status != "failed" {
						return fmt.Errorf("the %s of %s sees %s", who, n.Name, summary(view))
					}
				}
			}
		}
		return nil
	})
	return time.Since(fault)
}

// untilReconciled waits until every coordinator sees all nodes and what was amiss is mended.
func (f *fleet) untilReconciled(t *testing.T, victim *node, begin time.Time, mended func() error) time.Duration {
	t.Helper()
	host.Until(t, reconcileWithin+patient, victim.Name+" is reconciled", func() error {
		for _, n := range f.nodes {
			if err := f.takesPart(t, n); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
		}
		return mended()
	})
	return time.Since(begin)
}

// releaseAway releases a placement whose node does not hear of it.
func (f *fleet) releaseAway(t *testing.T, victim *node, k kept) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := f.after(victim).coordinator.Release(ctx, k.ID, 0)
	require.Error(t, err, "nobody can have confirmed it")
	require.NoError(t, f.isIn(t, k, placement.Released))
}

// isIn reports whether the record of a placement is in a state.
func (f *fleet) isIn(t *testing.T, k kept, want placement.State) error {
	for _, p := range f.records(t) {
		if p.ID == k.ID && p.State == want {
			return nil
		} else if p.ID == k.ID {
			return fmt.Errorf("%s is %s: %s", k.Request.ID, p.State, p.Reason)
		}
	}
	return errors.New("no record of " + k.Request.ID)
}
