package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentapi "warmd/agent/api"
	"warmd/coordinator/internal/agenttest"
	"warmd/coordinator/internal/store"
	"warmd/placement"
)

func code(err error) placement.Code {
	if err == nil {
		return ""
	}
	return placement.AsError(err).Code
}

func request(id string) placement.Request {
	return placement.Request{ID: id, Model: "/models/opt-125m", Name: "opt"}
}

func TestAClientPlacesListsAndReleases(t *testing.T) {
	r := newRig(t, 1)
	ctx := t.Context()
	var events []string
	p, err := r.client.Place(ctx, request("req-1"), "ready", func(l placement.Progress) { events = append(events, l.Event) })
	require.NoError(t, err)
	assert.Equal(t, []string{"assigned", "accepted", "ready"}, events)
	assert.Equal(t, placement.Ready, p.State)

	for _, key := range []string{p.ID, p.ID[:9], "opt"} {
		got, err := r.client.Placement(ctx, key)
		require.NoError(t, err, key)
		assert.Equal(t, p.ID, got.ID)
		assert.Equal(t, placement.Ready, got.State, "ready at once, though it is recorded behind the answer")
	}
	list, err := r.client.Placements(ctx, false)
	require.NoError(t, err)
	assert.Len(t, list, 1)
	tr, err := r.client.Trace(ctx, "opt")
	require.NoError(t, err)
	assert.Equal(t, "Load model", tr.Phases[0].Name)
	logs, err := r.client.Logs(ctx, p.ID, 7, false)
	require.NoError(t, err)
	text, err := io.ReadAll(logs)
	require.NoError(t, err)
	require.NoError(t, logs.Close())
	assert.Equal(t, "log of "+p.ID+" tail 7\n", string(text))

	got, err := r.client.Release(ctx, "opt", 0)
	require.NoError(t, err)
	assert.Equal(t, placement.Released, got.State)
	assert.Empty(t, r.agents[0].Held())
	list, err = r.client.Placements(ctx, false)
	require.NoError(t, err)
	assert.Empty(t, list)
	list, err = r.client.Placements(ctx, true)
	require.NoError(t, err)
	assert.Len(t, list, 1)
	_, err = r.client.Release(ctx, p.ID, 0)
	require.NoError(t, err, "releasing what is gone succeeds")
}

func TestAModelIsPutToSleepAndWokenByNameAndEverybodySeesIt(t *testing.T) {
	r := newRig(t, 1)
	ctx := t.Context()
	p, err := r.client.Place(ctx, request("req-1"), "ready", nil)
	require.NoError(t, err)
	for _, asleep := range []bool{true, true, false} {
		act := r.client.Wake
		if asleep {
			act = func(ctx context.Context, id string) (placement.Placement, error) { return r.client.Sleep(ctx, id, 1) }
		}
		got, err := act(ctx, "opt")
		require.NoError(t, err)
		assert.Equal(t, p.ID, got.ID)
		got, err = r.client.Placement(ctx, p.ID)
		require.NoError(t, err)
		assert.Equal(t, placement.Ready, got.State, "the record is what it was")
		assert.Equal(t, asleep, got.Sleeping)
	}
	_, err = r.client.Sleep(ctx, "opt", -1)
	assert.Equal(t, "grace_seconds", placement.AsError(err).Field)
	_, err = r.client.Release(ctx, "opt", 0)
	require.NoError(t, err)
	_, err = r.client.Sleep(ctx, p.ID, 0)
	assert.Equal(t, placement.CodeConflict, placement.AsError(err).Code)
	_, err = r.client.Wake(ctx, "nothing")
	assert.Equal(t, placement.CodeNotFound, placement.AsError(err).Code)
}

func TestWaitAssignedAnswersWhenTheAgentHasAccepted(t *testing.T) {
	r := newRig(t, 1)
	start := make(chan struct{})
	r.agents[0].Start = func(ctx context.Context, _ string, _ agentapi.Claim) error {
		select {
		case <-start:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	p, err := r.client.Place(t.Context(), request("req-1"), "assigned", nil)
	require.NoError(t, err)
	assert.Equal(t, placement.Loading, p.State)
	got, err := r.client.Placement(t.Context(), p.ID)
	require.NoError(t, err)
	assert.Equal(t, placement.Loading, got.State)
	close(start)
	require.Eventually(t, func() bool {
		rec, err := r.world.Get(t.Context(), p.ID)
		return err == nil && rec.State == placement.Ready
	}, 20*time.Second, 5*time.Millisecond, "it goes on without its caller")
}

func TestANameOfTwoPlacementsAsksForTheID(t *testing.T) {
	r := newRig(t, 1)
	for _, id := range []string{"req-1", "req-2"} {
		_, err := r.client.Place(t.Context(), request(id), "ready", nil)
		require.NoError(t, err)
	}
	_, err := r.client.Placement(t.Context(), "opt")
	assert.Equal(t, placement.CodeBadRequest, code(err))
	assert.Contains(t, err.Error(), "names 2 placements")
	_, err = r.client.Release(t.Context(), "p-", 0)
	assert.Equal(t, placement.CodeNotFound, code(err), "a prefix that says nothing matches nothing")
}

func TestMatchPrefersTheLivingAndTheLatest(t *testing.T) {
	rec := func(id, name string, st placement.State, at int64) store.Record {
		return store.Record{Placement: placement.Placement{ID: id, State: st, Request: placement.Request{Name: name}, Updated: time.Unix(at, 0)}}
	}
	all := []store.Record{rec("p-a", "opt", placement.Released, 9), rec("p-b", "opt", placement.Ready, 1), rec("p-c", "old", placement.Failed, 1), rec("p-d", "old", placement.Released, 2)}
	got, err := match(all, "opt")
	require.NoError(t, err)
	assert.Equal(t, "p-b", got.ID)
	got, err = match(all, "old")
	require.NoError(t, err)
	assert.Equal(t, "p-d", got.ID)
	got, err = match(all, "p-a")
	require.NoError(t, err)
	assert.Equal(t, "p-a", got.ID)
	_, err = match(all, "p-x")
	assert.Equal(t, placement.CodeNotFound, code(err))
}

// etcd dies and comes back. Placing is refused fast, what is known is still told, and
// everything works again without a restart.
func TestWhileEtcdIsAway(t *testing.T) {
	r := newRig(t, 2)
	ctx := t.Context()
	p, err := r.client.Place(ctx, request("req-1"), "ready", nil)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(r.world.All()) == 1 && r.world.All()[0].State == placement.Ready }, 20*time.Second, 5*time.Millisecond)
	r.etcd.Stop()

	begin := time.Now()
	_, err = r.client.Place(ctx, request("req-2"), "ready", nil)
	assert.Less(t, time.Since(begin), 15*time.Second, "it does not wait for etcd to come back")
	assert.Equal(t, placement.CodeUnavailable, code(err))
	assert.Contains(t, err.Error(), "check etcd")
	fleet, err := r.client.Fleet(ctx)
	require.NoError(t, err)
	assert.Len(t, fleet.Nodes, 2)
	require.Eventually(t, func() bool {
		st, err := r.client.Status(ctx)
		return err == nil && strings.Contains(st.Etcd, "reach etcd")
	}, 10*time.Second, 20*time.Millisecond)
	resp, err := r.client.Open(ctx, http.MethodGet, "/v1/placements", nil, nil)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Contains(t, string(body), p.ID)
	assert.NotEmpty(t, resp.Header.Get(ageHeader), "an answer from memory says how old it is")
	assert.Len(t, r.agents[0].Held(), 1, "the engine is not touched")
	_, err = r.client.Release(ctx, "p-unheard-of", 0)
	assert.Equal(t, placement.CodeUnavailable, code(err), "what is not remembered may be there: %v", err)

	r.etcd.Up()
	require.Eventually(t, func() bool {
		_, err := r.client.Place(ctx, request("req-3"), "ready", nil)
		return err == nil
	}, 15*time.Second, 100*time.Millisecond)
	for range 50 {
		list, err := r.client.Placements(ctx, true)
		require.NoError(t, err)
		assert.False(t, slices.ContainsFunc(list, func(p placement.Placement) bool { return p.Request.ID == "req-2" && p.State == placement.Ready }),
			"what was refused does not start later")
	}
}

// The coordinator that owns a placement dies while the model loads; the other one is
// elected and finishes it, and a caller that comes to it gets that placement.
func TestAnotherCoordinatorFinishesWhatADeadOneBegan(t *testing.T) {
	r := newRig(t, 1)
	start := make(chan struct{})
	r.agents[0].Start = func(ctx context.Context, _ string, _ agentapi.Claim) error {
		select {
		case <-start:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	second, client2, _ := startCoordinator(t, "c2", r.etcd, r.nodes)
	cfg := DefaultConfig()
	cfg.Name, cfg.LeaseSeconds, cfg.Endpoints, cfg.Socket = "c3", 2, []string{r.etcd.Endpoint()}, ""
	doomed, err := New(cfg, Options{View: r.nodes})
	require.NoError(t, err)
	ctx, kill := context.WithCancel(t.Context())
	dead := make(chan struct{})
	go func() { defer close(dead); _ = doomed.Run(ctx) }()
	var f interface {
		Follow(context.Context, func(placement.Progress) bool) error
	}
	require.Eventually(t, func() bool {
		fl, err := doomed.placer.Place(request("req-1"))
		f = fl
		return err == nil
	}, 5*time.Second, time.Millisecond)
	var id string
	require.NoError(t, f.Follow(ctx, func(l placement.Progress) bool {
		if l.Placement != nil {
			id = l.Placement.ID
		}
		return l.Event != placement.EventAccepted
	}))
	kill()
	<-dead
	var wg sync.WaitGroup
	var again placement.Placement
	wg.Go(func() { again, err = client2.Place(t.Context(), request("req-1"), "ready", nil) })
	require.Eventually(t, func() bool {
		rec, err := second.world.Get(t.Context(), id)
		return err == nil && strings.HasPrefix(rec.Owner, "c1.")
	}, 10*time.Second, 10*time.Millisecond, "the elected one takes it over")
	close(start)
	wg.Wait()
	require.NoError(t, err)
	assert.Equal(t, id, again.ID)
	assert.Equal(t, placement.Ready, again.State)
	assert.Equal(t, 1, again.Attempt)
}

// It could say so of every node: it has heard of none yet.
func TestACoordinatorThatHasJustStartedDoesNotCallAPlacementGone(t *testing.T) {
	r := newRig(t, 1)
	p, err := r.client.Place(t.Context(), request("req-1"), "ready", nil)
	require.NoError(t, err)
	_, started, _ := startCoordinator(t, "c2", r.etcd, agenttest.NewNodes().Live())
	for what, ask := range map[string]func() error{
		"sleep": func() error { _, err := started.Sleep(t.Context(), p.ID, 0); return err },
		"wake":  func() error { _, err := started.Wake(t.Context(), p.ID); return err },
		"trace": func() error { _, err := started.Trace(t.Context(), p.ID); return err },
		"logs":  func() error { _, err := started.Logs(t.Context(), p.ID, 1, false); return err },
	} {
		err := ask()
		assert.Equal(t, placement.CodeUnavailable, code(err), what)
		assert.ErrorContains(t, err, "does not hear n1, the node of placement "+p.ID, what)
	}
	_, err = started.Release(t.Context(), p.ID, 0)
	assert.Equal(t, placement.CodeUnavailable, code(err))
	assert.Contains(t, err.Error(), "is released, but node n1")
	_, err = r.client.Release(t.Context(), p.ID, 0)
	require.NoError(t, err)
	assert.Empty(t, r.agents[0].Held())
}

func TestAReleaseWhoseNodeIsAwayIsRecordedAndSaysSo(t *testing.T) {
	var broken atomic.Bool
	r := newRig(t, 1, func(_ *Config, o *Options) {
		o.AgentClient = func(node, addr string) (*agentapi.Client, error) {
			return agentapi.NewClient(addr, roundTrip(func(req *http.Request) (*http.Response, error) {
				if broken.Load() {
					return nil, errors.New("no route to host")
				}
				return http.DefaultTransport.RoundTrip(req)
			}))
		}
	})
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	p, err := r.client.Place(t.Context(), request("req-1"), "ready", nil)
	require.NoError(t, err)
	broken.Store(true)
	_, err = r.client.Release(t.Context(), p.ID, 0)
	assert.Equal(t, placement.CodeUnavailable, code(err))
	assert.Contains(t, err.Error(), "is released, but node n1")
	got, err := r.client.Placement(t.Context(), p.ID)
	require.NoError(t, err)
	assert.Equal(t, placement.Released, got.State)
	broken.Store(false)
	_, err = r.client.Release(t.Context(), p.ID, 0)
	require.NoError(t, err)
	assert.Empty(t, r.agents[0].Held())
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestEventsOfNodesAndOursComeByTimeAndCanBeFollowed(t *testing.T) {
	r := newRig(t, 2)
	p, err := r.client.Place(t.Context(), request("req-1"), "ready", nil)
	require.NoError(t, err)
	var kinds []string
	require.NoError(t, r.client.Events(t.Context(), false, func(e placement.Event) bool { kinds = append(kinds, e.Kind); return true }))
	assert.Contains(t, kinds, "zygote.up")
	assert.Contains(t, kinds, "leader.elected")
	assert.Contains(t, kinds, "placement.ready")

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	seen := map[string]int{}
	_ = r.client.Events(ctx, true, func(e placement.Event) bool {
		if seen[e.Kind]++; e.Kind == "zygote.up" && seen[e.Kind] == 1 {
			go func() { _, _ = r.client.Release(context.WithoutCancel(ctx), p.ID, 0) }()
		}
		return e.Kind != "placement.released"
	})
	assert.Equal(t, 1, seen["placement.released"])
	require.Eventually(t, func() bool { return len(r.agents[0].Held())+len(r.agents[1].Held()) == 0 }, 5*time.Second, time.Millisecond)
}

func TestAPartialAnswerNamesTheNodesThatAreMissing(t *testing.T) {
	r := newRig(t, 2)
	_, err := r.client.Place(t.Context(), placement.Request{Model: "opt", Node: "n2"}, "ready", nil)
	require.NoError(t, err)
	r.nodes.Mark("n2", "failed")
	list, err := r.client.Placements(t.Context(), false)
	require.NoError(t, err)
	assert.Equal(t, placement.Ready, list[0].State)
	assert.Contains(t, list[0].Reason, "node n2 is failed", "ready, as far as anybody knows")
	resp, err := r.client.Open(t.Context(), http.MethodGet, "/v1/workers", nil, nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	assert.Equal(t, "n2", resp.Header.Get(missHeader))
}

// A call failed a moment ago, and the node answers again: nobody waits until the
// suspicion has run out.
func TestANodeThatAnswersTheSweeperIsAliveAgain(t *testing.T) {
	r := newRig(t, 2)
	r.nodes.Mark("n2", "suspect")
	require.Eventually(t, func() bool {
		p, err := r.client.Place(t.Context(), placement.Request{Model: "opt", Node: "n2"}, "ready", nil)
		return err == nil && p.Node == "n2"
	}, 20*time.Second, 10*time.Millisecond)
}

// A coordinator is a member of the gossip, and not a node: nothing is placed on it,
// nobody asks it for workers, and no answer counts it as missing.
func TestAMemberWithoutAnAgentIsNotAPlaceToPlace(t *testing.T) {
	r := newRig(t, 0)
	r.nodes.Apply(placement.Capacity{Node: "c1", Coordinator: true, Epoch: 1})
	_, err := r.client.Place(t.Context(), request("req-1"), "ready", nil)
	assert.Equal(t, placement.CodeNoCapacity, code(err))
	assert.Contains(t, err.Error(), "the fleet has no node")
	resp, err := r.client.Open(t.Context(), http.MethodGet, "/v1/workers", nil, nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	assert.Empty(t, resp.Header.Get(missHeader))
	fleet, err := r.client.Fleet(t.Context())
	require.NoError(t, err)
	assert.Len(t, fleet.Nodes, 1, "capacity shows every member")
}

func TestMetricsCountWhatHappened(t *testing.T) {
	r := newRig(t, 1)
	_, err := r.client.Place(t.Context(), request("req-1"), "ready", nil)
	require.NoError(t, err)
	_, err = r.client.Place(t.Context(), placement.Request{Model: "opt", Runtime: "sglang"}, "ready", nil)
	require.Error(t, err)
	assert.InDelta(t, 1, testutil.ToFloat64(r.metrics.results.WithLabelValues("ready")), 0)
	assert.InDelta(t, 1, testutil.ToFloat64(r.metrics.results.WithLabelValues("unknown_runtime")), 0)
	assert.InDelta(t, 1, testutil.ToFloat64(r.metrics.leader), 0)
	resp, err := r.client.Open(t.Context(), http.MethodGet, "/metrics", nil, nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	for _, want := range []string{`warmd_place_seconds_count{phase="choose"}`, `warmd_place_seconds_count{phase="txn"}`, `warmd_place_seconds_count{phase="claim"}`,
		`warmd_start_seconds_count{tier="warm"} 1`, "warmd_view_age_seconds", `warmd_nodes{status="alive"} 1`, "warmd_queue_length 0", "warmd_coordinator_leader 1"} {
		assert.Contains(t, string(text), want)
	}
}

func TestConfigNamesTheFieldThatIsWrong(t *testing.T) {
	for field, spoil := range map[string]func(*Config){
		"name":              func(c *Config) { c.Name = "a b" },
		"etcd_prefix":       func(c *Config) { c.Prefix = "warmd" },
		"lease_seconds":     func(c *Config) { c.LeaseSeconds = 1 },
		"max_queue":         func(c *Config) { c.MaxQueue = 0 },
		"node_gone_seconds": func(c *Config) { c.NodeGoneSeconds = 1 },
		"retention_hours":   func(c *Config) { c.RetentionHours = 1 },
		"etcd_endpoints":    func(c *Config) { c.Endpoints = nil },
	} {
		cfg := DefaultConfig()
		spoil(&cfg)
		_, err := New(cfg, Options{View: struct{ View }{}})
		var fe *placement.FieldError
		require.ErrorAs(t, err, &fe, field)
		assert.Equal(t, field, fe.Field)
	}
	_, err := New(DefaultConfig(), Options{})
	require.ErrorContains(t, err, "no view")
}

func TestARingKeepsTheLatestAndASlowReaderMissesTheOldest(t *testing.T) {
	r := newRing("c1")
	for i := range maxEvents + 10 {
		r.add(placement.Event{Kind: fmt.Sprint(i)})
	}
	got, _ := r.since(0)
	require.Len(t, got, maxEvents)
	assert.EqualValues(t, 11, got[0].Seq)
	assert.Equal(t, "10", got[0].Kind)
	assert.EqualValues(t, maxEvents+10, got[len(got)-1].Seq)
	got, _ = r.since(maxEvents + 9)
	require.Len(t, got, 1)
}

// BenchmarkPlace is the coordinator's overhead: a request at the HTTP interface until
// the agent has accepted, over a real etcd that fsyncs and an agent that accepts at
// once. The goal is p50 <= 10 ms and p99 <= 30 ms on two cores.
func BenchmarkPlace(b *testing.B) {
	r := newRig(b, 4, func(_ *Config, o *Options) {})
	took := make([]time.Duration, 0, b.N)
	b.ResetTimer()
	for i := range b.N {
		begin := time.Now()
		p, err := r.client.Place(b.Context(), request(fmt.Sprintf("req-%d", i)), "assigned", nil)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
		if _, err := r.client.Release(b.Context(), p.ID, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
