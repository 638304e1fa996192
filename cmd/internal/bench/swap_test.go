package bench

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// fleet is a coordinator and an agent whose processes are this test's.
type fleet struct {
	mu       sync.Mutex
	placed   map[string]placement.Placement
	order    []string // what was asked, as verb and model
	node     agentapi.NodeStatus
	onPlace  func()
	onDelete func()
	engines  map[string]string // model -> URL
	texts    map[string]string
	fails    string // model
}

func newFleet(t *testing.T) (*fleet, *coordapi.Client, *agentapi.Client) {
	t.Helper()
	f := &fleet{placed: map[string]placement.Placement{}, engines: map[string]string{}, texts: map[string]string{}}
	f.node = agentapi.NodeStatus{
		PID: os.Getpid(), RunDir: t.TempDir(), Zygotes: []agentapi.Zygote{{Runtime: "rt", Generation: 1, PID: os.Getpid()}},
		Capacity: placement.Capacity{
			Node: "n1", Runtimes: []placement.Runtime{{Name: "rt", Kind: "vllm"}},
			Devices: []placement.Device{{ID: "cpu-0", Slots: 1, Free: 1, FreeBytes: 1 << 30, Warm: map[string]int{"rt": 1}}},
		},
	}
	for _, m := range []string{"a", "b"} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			f.mu.Lock()
			text := "I am " + m + f.texts[m]
			f.mu.Unlock()
			serveEngine(w, q, text)
		}))
		t.Cleanup(srv.Close)
		f.engines[m] = srv.URL
	}
	mux := http.NewServeMux()
	answer := func(pattern string, do func(q *http.Request) any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, q *http.Request) {
			f.mu.Lock()
			v := do(q)
			f.mu.Unlock()
			if err, ok := v.(error); ok {
				agentapi.WriteError(w, err)
				return
			}
			agentapi.WriteJSON(w, 200, v)
		})
	}
	mux.HandleFunc("POST /v1/placements", func(w http.ResponseWriter, q *http.Request) {
		var r placement.Request
		if err := agentapi.ReadJSON(w, q, &r); err != nil {
			agentapi.WriteError(w, err)
			return
		}
		f.mu.Lock()
		p := placement.Placement{ID: r.ID, Request: r, State: placement.Loading, Node: r.Node, Runtime: "rt", Tier: placement.TierWarm, Endpoint: f.engines[r.Name]}
		f.placed[p.ID] = p
		f.order = append(f.order, "place "+r.Name)
		if f.onPlace != nil {
			f.onPlace()
		}
		f.mu.Unlock()
		_ = agentapi.NewLines(w, 200).Write(placement.Progress{Event: placement.EventAccepted, Placement: &p})
	})
	answer("GET /v1/placements/{id}", func(q *http.Request) any {
		p := f.placed[q.PathValue("id")]
		if p.Request.Name == f.fails {
			p.State, p.Reason = placement.Failed, "no such architecture"
		}
		return p
	})
	answer("GET /v1/placements/{id}/trace", func(*http.Request) any {
		return placement.Trace{Phases: []placement.Phase{{Name: phaseFork, Proc: "zygote", Start: -1, Duration: 0.5, Before: true}, {Name: phaseFork, Proc: "zygote", Start: 0, Duration: 0.25}}}
	})
	answer("DELETE /v1/placements/{id}", func(q *http.Request) any {
		p, ok := f.placed[q.PathValue("id")]
		if !ok {
			return placement.Errorf(placement.CodeNotFound, "no placement has the id %s", q.PathValue("id"))
		}
		p.State = placement.Released
		f.placed[p.ID] = p
		f.order = append(f.order, "release "+p.Request.Name)
		if f.onDelete != nil {
			f.onDelete()
		}
		return p
	})
	answer("GET /v1/capacity", func(*http.Request) any {
		return placement.Fleet{Nodes: []placement.NodeView{{Alive: true, Capacity: f.node.Capacity}}}
	})
	answer("GET /v1/node", func(*http.Request) any { return f.node })
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	c, err := coordapi.NewClient(srv.URL, nil)
	require.NoError(t, err)
	a, err := agentapi.NewClient(srv.URL, nil)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close(); a.Close() })
	return f, c, a
}

func script(c *coordapi.Client, a *agentapi.Client, swaps int) Swaps {
	return Swaps{Coordinator: c, Agent: a, Models: []string{"/models/a", "/models/b"}, Swaps: swaps, Request: placement.Request{Runtime: "rt"}, Report: func(Swap) {}}
}

func TestModelsTakeTurnsInOneSlot(t *testing.T) {
	f, c, a := newFleet(t)
	rep, err := script(c, a, 3).Run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{
		"place a", "release a", "place b", "release b", // not counted
		"place a", "release a", "place b", "release b", "place a", "release a", "place b", "release b",
	}, f.order)
	require.Len(t, rep.Swaps, 3)
	for _, s := range rep.Swaps {
		assert.InDelta(t, s.Seconds, s.Release+s.Accept+s.Token, 1e-6, "one clock")
		assert.InDelta(t, 0.25, s.Forked, 1e-9, "only what the request waited for")
	}
	assert.Equal(t, "a", rep.Swaps[0].From)
	assert.Equal(t, "b", rep.Swaps[0].To)
	assert.Equal(t, Pool{Warm: 3, Forked: 3, P50: 0.25, Max: 0.25}, rep.Pool)
	for _, p := range f.placed {
		assert.Equal(t, "n1", p.Request.Node, "pinned to the node whose processes are counted")
	}
	grids := rep.Grids()
	require.Len(t, grids, 3)
	assert.Equal(t, "all", grids[0].Rows[2][0])
}

func TestWhatEachReleaseLeavesBehindIsFound(t *testing.T) {
	f, c, a := newFleet(t)
	n := 0
	f.onDelete = func() {
		if n++; n > 2 { // after what is not counted
			f.node.Capacity.Devices[0].Quarantined = 1
		}
	}
	s := script(c, a, 1)
	s.Patience = time.Second
	begin := time.Now()
	rep, err := s.Run(t.Context())
	require.NoError(t, err)
	assert.Contains(t, rep.Leaks, "1 more slots in quarantine than before")
	assert.Greater(t, time.Since(begin), s.Patience, "it is given time to be cleaned up")
}

func TestAModelThatAnswersOtherwiseLaterIsAnError(t *testing.T) {
	f, c, a := newFleet(t)
	f.onDelete = func() { f.texts["a"] = ", or not" }
	_, err := script(c, a, 2).Run(t.Context())
	require.ErrorContains(t, err, `it answers "I am a, or not", and answered "I am a" before`)
}

func TestAPlacementThatFailsIsNotWaitedForForEver(t *testing.T) {
	f, c, a := newFleet(t)
	f.engines["b"] = "http://127.0.0.1:1" // nobody listens
	f.fails = "b"
	_, err := script(c, a, 1).Run(t.Context())
	require.ErrorContains(t, err, "is failed: no such architecture")
	f.empty(t)
}

// empty says that nothing that was placed holds a slot any more.
func (f *fleet) empty(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	require.NotEmpty(t, f.placed)
	for _, p := range f.placed {
		require.Equal(t, placement.Released, p.State, "%s", p.ID)
	}
}

func TestWhatAnInterruptedBenchPlacedIsReleased(t *testing.T) {
	for what, run := range map[string]func(context.Context, *fleet, *coordapi.Client, *agentapi.Client) error{
		"a start": func(ctx context.Context, f *fleet, c *coordapi.Client, _ *agentapi.Client) error {
			_, err := Run(ctx, []Arm{Placed(c, "warm", placement.Request{Name: "a"})}, plan(1))
			return err
		},
		"a model that was to sleep": func(ctx context.Context, f *fleet, c *coordapi.Client, _ *agentapi.Client) error {
			_, err := Run(ctx, []Arm{Asleep(c, "sleeping", placement.Request{Name: "a"})}, plan(1))
			return err
		},
		"a swap": func(ctx context.Context, f *fleet, c *coordapi.Client, a *agentapi.Client) error {
			_, err := script(c, a, 1).Run(ctx)
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			f, c, a := newFleet(t)
			ctx, cancel := context.WithCancel(t.Context())
			f.onPlace = cancel // the fleet has the claim, the client does not know yet
			require.Error(t, run(ctx, f, c, a))
			f.empty(t)
		})
		t.Run(what+", late", func(t *testing.T) {
			f, c, a := newFleet(t)
			ctx, cancel := context.WithCancel(t.Context())
			f.onPlace = func() { time.AfterFunc(20*time.Millisecond, cancel) }
			f.engines["a"] = "http://127.0.0.1:1" // never answers
			require.Error(t, run(ctx, f, c, a))
			f.empty(t)
		})
	}
	f, c, a := newFleet(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.onDelete = cancel
	_, err := script(c, a, 1).Run(ctx)
	require.Error(t, err, "interrupted in a release")
	f.empty(t)
}

func TestAnAgentOfAnotherHostIsRefused(t *testing.T) {
	f, c, a := newFleet(t)
	f.node.PID = 1 << 30
	_, err := script(c, a, 1).Run(t.Context())
	require.ErrorContains(t, err, "it is not a process of this host")
	f.node.PID = 0
	_, err = script(c, a, 1).Run(t.Context())
	require.ErrorContains(t, err, "older warmd")
}
