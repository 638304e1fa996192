package nspawn

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

const (
	refusedWithin = 2 * time.Second
	backWithin    = 3 * time.Second
)

// lostQuorum kills two members of etcd and keeps them down.
func lostQuorum(t *testing.T, f *fleet) {
	stream := f.stream(t, f.id("qu"))
	var held []kept
	for _, n := range f.nodes {
		held = append(held, f.put(t, f.id("qu-held")+"-"+n.Name, n))
	}
	leading := f.etcdLeader(t)
	down := []*node{leading, f.after(leading)}
	told := stream.Stop()
	before := map[*node][]host.Process{}
	for _, n := range f.nodes {
		before[n] = engines(t, n.Host)
	}
	ends := load.Repeat(t.Context(), 1, f.completions(t, held))
	for _, n := range down {
		n.Run(t, "systemctl kill -s KILL "+etcdUnit+"; systemctl stop "+etcdUnit)
	}

	var refused []time.Duration
	for round := range 3 {
		for _, n := range f.nodes {
			begin := time.Now()
			_, err := n.coordinator.Place(t.Context(), request(fmt.Sprintf("%s-%s-%d", f.id("qu-refused"), n.Name, round)), "ready", nil)
			refused = append(refused, time.Since(begin))
			assert.Equal(t, placement.CodeUnavailable, placement.AsError(err).Code, "%v", err)
		}
	}
	for _, n := range f.nodes {
		f.answersReads(t, n, held)
		assert.Equal(t, before[n], engines(t, n.Host), "engines are none of etcd's business")
	}

	for _, n := range down {
		n.Run(t, "systemctl start --no-block "+etcdUnit)
	}
	back := f.untilPlacing(t)
	f.each(t, func(n *node) { f.untilCoordinates(t, n) })
	assert.Zero(t, ends.Stop().Failed(), "%s", ends)
	for _, k := range held {
		told = append(told, k.told())
	}
	f.figures("refused_seconds_without_quorum", refused)
	f.figures("placing_seconds_after_quorum", back)
	f.assertBelow(t, refusedWithin, refused, "refused")
	f.assertBelow(t, backWithin, back, "placing again")
	f.prove(t, f.id("qu"), told)
}

// answersReads asks a coordinator for what it can say without etcd, with its age.
func (f *fleet) answersReads(t *testing.T, n *node, held []kept) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	view, err := n.coordinator.Fleet(ctx)
	require.NoError(t, err)
	assert.Len(t, view.Nodes, len(f.nodes))
	for _, v := range view.Nodes {
		assert.True(t, v.Alive, summary(view))
		assert.Less(t, v.AgeSeconds, 60.0, summary(view))
	}
	all, err := n.coordinator.Placements(ctx, false)
	require.NoError(t, err)
	for _, k := range held {
		assert.Condition(t, func() bool {
			for _, p := range all {
				if p.ID == k.ID && p.State == placement.Ready {
					return true
				}
			}
			return false
		}, "%s lists %s", n.Name, k.Request.ID)
	}
	resp, err := n.coordinator.Open(ctx, http.MethodGet, "/v1/placements", nil, nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	age, err := strconv.ParseFloat(resp.Header.Get("Warmd-Age-Seconds"), 64)
	require.NoError(t, err, "%s says how old the answer is", n.Name)
	assert.Positive(t, age)
}

// untilPlacing measures for every coordinator how long after etcd has a quorum again
// it places.
func (f *fleet) untilPlacing(t *testing.T) []time.Duration {
	t.Helper()
	var wg sync.WaitGroup
	placing := make([]time.Time, len(f.nodes))
	for i, n := range f.nodes {
		wg.Go(func() {
			for round := 0; t.Context().Err() == nil; round++ {
				r := request(fmt.Sprintf("%s-%s-%d", f.id("qu-again"), n.Name, round))
				p, err := n.coordinator.Place(t.Context(), r, "assigned", nil)
				if err == nil {
					placing[i] = time.Now()
					_, _ = f.Release(t.Context(), p.ID)
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	kv := f.etcd.client(t, f.without(f.nodes[0])...) // a client of its own: nobody's pauses are measured
	defer kv.Close()
	var quorum time.Time
	host.Until(t, patient, "etcd has a quorum", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := kv.Get(ctx, "/quorum")
		quorum = time.Now()
		return err
	})
	wg.Wait()
	var took []time.Duration
	for _, at := range placing {
		took = append(took, max(0, at.Sub(quorum)))
	}
	return took
}

// completions takes turns with the engines that are held.
func (f *fleet) completions(t *testing.T, held []kept) func(context.Context) error {
	client := &http.Client{Transport: &http.Transport{DialContext: lab.Dial}}
	var endpoints []string
	for _, k := range held {
		p, err := f.nodes[0].coordinator.Placement(t.Context(), k.ID)
		require.NoError(t, err)
		endpoints = append(endpoints, p.Endpoint)
	}
	next := 0
	return func(ctx context.Context) error {
		next++
		i := next % len(held)
		return load.Complete(ctx, client, endpoints[i], held[i].Request.Name, 8)
	}
}
