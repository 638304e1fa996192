package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// fake is a fleet that speaks both APIs. What a placement does is scripted by the
// last element of its model's path, see scenarios.
type fake struct {
	coordinator *httptest.Server
	agent       *httptest.Server
	agentSocket string

	mu         sync.Mutex
	placements map[string]placement.Placement
	requests   []placement.Request // every POST /v1/placements, in order
	seen       chan string         // model of each, as it comes; tests wait on it
	fleet      placement.Fleet
	workers    []agentapi.Worker
	status     coordapi.Status
	drains     []string
	traces     []placement.Trace // the next answers, in place of the fixed ones
	headers    map[string]string // of every answer of the coordinator
	clock      time.Time         // of both servers
}

const gpu = "GPU-5e2f10a8-1111-2222-3333-444455556666"

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{clock: now, seen: make(chan string, 64), placements: map[string]placement.Placement{}, status: coordapi.Status{Name: "c1", Version: "1.2.3", Leader: "c1", Etcd: "ok"}}
	f.fleet = fakeFleet()
	f.workers = fakeWorkers()
	for _, p := range fakePlacements() {
		f.placements[p.ID] = p
	}
	f.coordinator = httptest.NewServer(f.routes("coordinator"))
	dir, err := os.MkdirTemp("", "wctl") // short: a socket's path holds 107 bytes
	require.NoError(t, err)
	f.agentSocket = filepath.Join(dir, "agent.sock")
	ln, err := net.Listen("unix", f.agentSocket)
	require.NoError(t, err)
	f.agent = &httptest.Server{Listener: ln, Config: &http.Server{Handler: f.routes("agent")}}
	f.agent.Start()
	t.Cleanup(func() {
		f.coordinator.Close()
		f.agent.Close()
		_ = os.RemoveAll(dir)
	})
	return f
}

func (f *fake) routes(role string) http.Handler {
	local := role == "agent"
	mux := http.NewServeMux()
	get := func(route string, answer func(r *http.Request) (any, error)) {
		mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) {
			f.mu.Lock()
			v, err := answer(r)
			if !local {
				for k, v := range f.headers {
					w.Header().Set(k, v)
				}
			}
			f.mu.Unlock()
			if err != nil {
				agentapi.WriteError(w, err)
				return
			}
			agentapi.WriteJSON(w, 200, v)
		})
	}
	get("GET /v1/placements", func(r *http.Request) (any, error) {
		return f.list(func(p placement.Placement) bool {
			return (!local || p.Node == "n1") && (local || r.URL.Query().Get("all") == "1" || !p.State.Terminal())
		}), nil
	})
	get("GET /v1/placements/{id}", func(r *http.Request) (any, error) { return f.find(r, local) })
	get("GET /v1/placements/{id}/trace", func(r *http.Request) (any, error) {
		if r.PathValue("id") == "p-far" { // passed on from a node that is away
			return nil, placement.Errorf(placement.CodeUnavailable, "reach server: dial tcp 10.0.0.9:7701: connect: no route to host")
		}
		p, err := f.find(r, local)
		if err != nil {
			return nil, err
		}
		if len(f.traces) > 0 {
			next := f.traces[0]
			f.traces = f.traces[1:]
			return next, nil
		}
		t := fakeTrace(p.ID)
		if p.ID == "p-aab2" { // a start that loaded longer, and had no coordinator
			t.Total += 1.5
			t.Phases[7].Duration += 1.5
			t.Phases = slices.Delete(t.Phases, 3, 4)
		}
		return t, nil
	})
	get("GET /v1/traces", func(*http.Request) (any, error) { return []placement.Trace{fakeTrace("p-aaa1")}, nil })
	get("GET /v1/workers", func(*http.Request) (any, error) {
		if local {
			return f.workers[:2], nil
		}
		return f.workers, nil
	})
	get("GET /v1/capacity", func(*http.Request) (any, error) {
		fleet := f.fleet
		if local {
			fleet.From = "n1"
		}
		return fleet, nil
	})
	get("GET /v1/status", func(*http.Request) (any, error) { return f.status, nil })
	get("GET /v1/node", func(*http.Request) (any, error) {
		return agentapi.NodeStatus{Capacity: f.fleet.Nodes[0].Capacity, Ready: true, Workers: f.workers[:2]}, nil
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		w.Header().Set("Date", f.clock.UTC().Format(http.TimeFormat))
	})
	mux.HandleFunc("GET /v1/events", f.events)
	mux.HandleFunc("GET /v1/placements/{id}/logs", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		p, err := f.find(r, local)
		f.mu.Unlock()
		if err != nil {
			agentapi.WriteError(w, err)
			return
		}
		fmt.Fprintf(w, "last %s lines of %s\n\x1b[32mINFO\x1b[0m engine up\x07\n", r.URL.Query().Get("tail"), p.ID)
	})
	if local {
		get("POST /v1/drain", func(*http.Request) (any, error) { return f.drain("n1", true) })
		get("POST /v1/undrain", func(*http.Request) (any, error) { return f.drain("n1", false) })
		return mux
	}
	get("POST /v1/nodes/{node}/drain", func(r *http.Request) (any, error) { return f.drain(r.PathValue("node"), true) })
	get("POST /v1/nodes/{node}/undrain", func(r *http.Request) (any, error) { return f.drain(r.PathValue("node"), false) })
	get("DELETE /v1/placements/{id}", func(r *http.Request) (any, error) {
		p, err := f.find(r, false)
		if err != nil {
			return nil, err
		}
		if p.State != placement.Failed {
			p.State = placement.Released
		}
		f.placements[p.ID] = p
		for i, d := range f.fleet.Nodes[0].Devices {
			if p.Node == "n1" && slices.Contains(d.Placements, p.ID) {
				f.fleet.Nodes[0].Devices[i].Busy, f.fleet.Nodes[0].Devices[i].Free, f.fleet.Nodes[0].Devices[i].Placements = 0, d.Slots, nil
			}
		}
		return p, nil
	})
	rest := func(asleep bool) func(r *http.Request) (any, error) {
		return func(r *http.Request) (any, error) {
			p, err := f.find(r, false)
			switch {
			case err != nil:
				return nil, err
			case asleep && p.ID == "p-aab2":
				return nil, placement.Errorf(placement.CodeUnsupported, "sleep %s: it was loaded without --enable-sleep-mode: place it with that argument", p.ID)
			case p.State != placement.Ready:
				return nil, placement.Errorf(placement.CodeConflict, "placement %s is %s", p.ID, p.State)
			}
			p.Sleeping = asleep
			f.placements[p.ID] = p
			return p, nil
		}
	}
	get("POST /v1/placements/{id}/sleep", rest(true))
	get("POST /v1/placements/{id}/wake", rest(false))
	mux.HandleFunc("POST /v1/placements", f.place)
	return mux
}

// list and find run under the lock.
func (f *fake) list(keep func(placement.Placement) bool) []placement.Placement {
	out := []placement.Placement{}
	for _, id := range slices.Sorted(maps.Keys(f.placements)) {
		if p := f.placements[id]; keep(p) {
			out = append(out, p)
		}
	}
	return out
}

func (f *fake) find(r *http.Request, exact bool) (placement.Placement, error) {
	key := r.PathValue("id")
	if exact {
		if p, ok := f.placements[key]; ok {
			return p, nil
		}
		return placement.Placement{}, placement.Errorf(placement.CodeNotFound, "no placement %q", key)
	}
	return findPlacement(f.list(func(placement.Placement) bool { return true }), key)
}

func (f *fake) drain(node string, drain bool) (any, error) {
	f.drains = append(f.drains, fmt.Sprintf("%s=%v", node, drain))
	for i, n := range f.fleet.Nodes {
		if n.Node == node {
			f.fleet.Nodes[i].Draining = drain
			return f.fleet.Nodes[i].Capacity, nil
		}
	}
	return nil, placement.Errorf(placement.CodeNotFound, "no node %q", node).WithHint("warmctl nodes lists them")
}

func (f *fake) events(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	for k, v := range f.headers {
		w.Header().Set(k, v)
	}
	f.mu.Unlock()
	if r.URL.Query().Get("follow") == "" {
		agentapi.WriteJSON(w, 200, fakeEvents())
		return
	}
	lines := agentapi.NewLines(w, 200)
	for _, e := range fakeEvents() {
		_ = lines.Write(e)
	}
	f.seen <- "events"
	<-r.Context().Done()
}

// place answers POST /v1/placements by the scenario that the model names.
func (f *fake) place(w http.ResponseWriter, r *http.Request) {
	var req placement.Request
	if err := agentapi.ReadJSON(w, r, &req); err != nil {
		agentapi.WriteError(w, err)
		return
	}
	f.mu.Lock()
	f.requests = append(f.requests, req)
	tries := len(f.requests)
	f.mu.Unlock()
	if r.URL.Query().Get("dry_run") != "" {
		agentapi.WriteJSON(w, 200, fakeDecision(path.Base(req.Model)))
		return
	}
	run, ok := scenarios[path.Base(req.Model)]
	if !ok {
		run = scenarios["opt-125m"]
	}
	p := placement.Placement{ID: "p-new1", Request: req.Normalize(), State: placement.Assigned, Attempt: 1, Node: "n1", Device: "cpu-0", Runtime: "vllm", Tier: placement.TierWarm, Created: now, Updated: now}
	run(&scene{f: f, w: w, ctx: r.Context(), p: p, try: tries, model: req.Model})
}

// scene is one run of a scenario.
type scene struct {
	f     *fake
	w     http.ResponseWriter
	ctx   context.Context
	p     placement.Placement
	try   int
	model string
	lines *agentapi.Lines
}

func (s *scene) send(event string, elapsed float64, change func(*placement.Progress)) {
	if s.lines == nil {
		s.lines = agentapi.NewLines(s.w, 200)
	}
	p := s.p
	ev := placement.Progress{Event: event, Elapsed: elapsed, Placement: &p}
	if change != nil {
		change(&ev)
	}
	_ = s.lines.Write(ev)
}

func (s *scene) accepted() {
	s.send(placement.EventAssigned, 0.004, nil)
	s.p.State = placement.Loading
	s.send(placement.EventAccepted, 0.009, nil)
	s.send(placement.EventPhase, 0.4, func(ev *placement.Progress) {
		ev.Phase = &placement.Phase{Name: "Load weights", Proc: "engine", Start: 0.2, Duration: 0.18}
	})
}

func (s *scene) ready() {
	s.p.State, s.p.Endpoint, s.p.StartSeconds, s.p.TraceID = placement.Ready, "http://127.0.0.1:8123", 2.81, "4bf92f3577b34da6a3ce929d0e0e4736"
	s.send(placement.EventReady, 2.81, nil)
}

func (s *scene) fail(e *placement.Error) {
	s.p.State, s.p.Reason = placement.Failed, e.Message
	s.send(placement.EventFailed, 3.5, func(ev *placement.Progress) { ev.Error = e })
}

// scenarios are the placements a test may ask for, by model.
var scenarios = map[string]func(*scene){
	"opt-125m": func(s *scene) { s.accepted(); s.ready() },
	"full": func(s *scene) {
		agentapi.WriteError(s.w, &placement.Error{Code: placement.CodeNoCapacity, Message: "every slot is taken", Capacity: &s.f.fleet.Nodes[0].Capacity})
	},
	"missing": func(s *scene) {
		agentapi.WriteError(s.w, placement.Errorf(placement.CodeModelNotFound, "no model folder %s on n1", s.model).WithHint("copy it there, or give its path"))
	},
	"refused": func(s *scene) {
		agentapi.WriteError(s.w, placement.Errorf(placement.CodeArgRefused, "engine argument --trust-remote-code is not allowed on n1").WithHint("an operator allows it in the agent's configuration: allow_args"))
	},
	"etcd-down": func(s *scene) {
		agentapi.WriteError(s.w, placement.Errorf(placement.CodeUnavailable, "etcd does not answer").WithHint("check the endpoints"))
	},
	"crash": func(s *scene) {
		s.accepted()
		s.fail(&placement.Error{Code: placement.CodeStartFailed, Message: "the engine exited with code 1 while it loaded", Detail: "Traceback (most recent call last):\n\x1b[31mValueError\x1b[0m: unknown architecture Foo\n"})
	},
	"late": func(s *scene) {
		s.accepted()
		s.fail(placement.Errorf(placement.CodeTimeout, "not ready within 5 s").WithHint("give more with --timeout"))
	},
	"slow": func(s *scene) { s.accepted(); s.f.seen <- "slow"; <-s.ctx.Done() },
	"silent": func(s *scene) {
		s.w.WriteHeader(200)
		_ = http.NewResponseController(s.w).Flush()
		s.f.seen <- "silent"
		<-s.ctx.Done()
	},
	// flaky breaks the stream twice, then answers.
	"flaky": func(s *scene) {
		s.accepted()
		if s.try > 2 {
			s.ready()
		}
	},
	"gone": func(s *scene) { s.accepted() }, // breaks every time
	// reset kills the connection once, before it has said anything.
	"reset": func(s *scene) {
		if s.try == 1 {
			panic(http.ErrAbortHandler)
		}
		s.accepted()
		s.ready()
	},
	"forced-cold": func(s *scene) {
		s.p.Tier = placement.TierCold
		s.send(placement.EventAccepted, 0.01, func(ev *placement.Progress) { ev.Message = "VLLM_USE_V1 is read at import" })
		s.ready()
	},
	"text": func(s *scene) { http.Error(s.w, "bad gateway from a proxy", http.StatusBadGateway) },
}

func fakeDecision(model string) placement.Decision {
	passed := []placement.Passed{{Node: "n2", Code: placement.CodeDraining, Reason: "draining"}, {Node: "n3", Code: placement.CodeUnavailable, Reason: "not alive (failed, last heard 95 s ago)"}}
	switch model {
	case "full":
		return placement.Decision{Passed: append([]placement.Passed{{Node: "n1", Code: placement.CodeNoCapacity, Reason: "every slot is taken"}}, passed...)}
	case "two-runtimes":
		return placement.Decision{Passed: []placement.Passed{{Node: "n1", Code: placement.CodeUnknownRuntime, Reason: "has 2 runtimes [a b] and the request names none"}}}
	case "nobody":
		return placement.Decision{}
	}
	return placement.Decision{Passed: passed, Candidates: []placement.Candidate{{Node: "n1", Device: "cpu-0", Runtime: "vllm", Tier: placement.TierWarm, Why: "1 idle warm worker(s)"}}}
}

func fakePlacements() []placement.Placement {
	return []placement.Placement{
		{ID: "p-aaa1", Request: placement.Request{ID: "r-1", Model: "/models/opt-125m", Name: "opt-125m", Start: "auto", Args: []string{"--max-model-len=512"}, Env: map[string]string{"HF_TOKEN": "hf_secret", "A": "b"}, TimeoutSeconds: 90},
			State: placement.Ready, Attempt: 1, Node: "n1", Device: "cpu-0", Worker: "w-1", Runtime: "vllm", Tier: placement.TierWarm, Endpoint: "http://127.0.0.1:8123",
			TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", Created: now.Add(-3 * time.Minute), Updated: now.Add(-177 * time.Second), StartSeconds: 2.81},
		{ID: "p-aab2", Request: placement.Request{ID: "r-2", Model: "llama-3-8b", Name: "llama", MemoryBytes: 20 << 30}, State: placement.Loading, Attempt: 2, Node: "n2", Device: gpu, Runtime: "vllm-next",
			Tier: placement.TierCold, Created: now.Add(-30 * time.Second), Updated: now.Add(-29 * time.Second)},
		{ID: "p-ccc3", Request: placement.Request{ID: "r-3", Model: "/models/big", Name: "big"}, State: placement.Failed, Attempt: 4, Reason: "no capacity by the deadline",
			Hint: "warmctl capacity", Created: now.Add(-26 * time.Hour), Updated: now.Add(-26 * time.Hour)},
	}
}

func fakeFleet() placement.Fleet {
	return placement.Fleet{From: "c1", At: now, Nodes: []placement.NodeView{
		{Alive: true, Status: "alive", AgeSeconds: 0.3, Capacity: placement.Capacity{Node: "n1", Epoch: now.Add(-5 * time.Hour).UnixNano(), Generation: 17, Addr: "10.0.0.1:7701", Version: "1.2.3", Coordinator: true,
			Devices:  []placement.Device{{ID: "cpu-0", Kind: "cpu", TotalBytes: 24 << 30, FreeBytes: 19 << 30, Slots: 2, Free: 1, Busy: 1, Warm: map[string]int{"vllm": 1}, Placements: []string{"p-aaa1"}}},
			Runtimes: []placement.Runtime{{Name: "vllm", Kind: "vllm", Engine: "vllm", Version: "0.32.0", Device: "cpu", ProfileKey: "0123456789abcdef", Zygote: "up"}}}},
		{Alive: true, Status: "alive", AgeSeconds: 12.4, Capacity: placement.Capacity{Node: "n2", Generation: 4, Addr: "10.0.0.2:7701", Version: "1.2.2", Draining: true, Summary: true,
			Devices: []placement.Device{{ID: gpu, Kind: "cuda", Name: "NVIDIA H200", TotalBytes: 141 << 30, FreeBytes: 100 << 30, Slots: 1, Busy: 1, Warm: map[string]int{"vllm": 0}},
				{ID: "GPU-77777777-aaaa-bbbb-cccc-dddddddddddd", Kind: "cuda", Slots: 1, Quarantined: 1, Problem: "12 GiB still held by pid 4711"}},
			Runtimes: []placement.Runtime{{Name: "vllm-next", Kind: "vllm", Zygote: "starting"}, {Name: "echo", Kind: "exec"}}}},
		{Status: "failed", AgeSeconds: 95, Capacity: placement.Capacity{Node: "n3"}},
	}}
}

func fakeWorkers() []agentapi.Worker {
	return []agentapi.Worker{
		{ID: "w-1", Node: "n1", Device: "cpu-0", Runtime: "vllm", Generation: 2, State: "serving", Placement: "p-aaa1", Since: now.Add(-4 * time.Minute), EnginePID: 4001, APIPID: 4002, RSSBytes: 1800 << 20},
		{ID: "w-2", Node: "n1", Device: "cpu-0", Runtime: "vllm", Generation: 2, State: "warm", Since: now.Add(-2 * time.Minute), EnginePID: 4011, APIPID: 4012, RSSBytes: 700 << 20},
		{ID: "w-9", Node: "n2", Device: gpu, Runtime: "vllm-next", Generation: 1, State: "quarantined", Since: now.Add(-3 * time.Hour), Problem: "no journal entry explains it"},
	}
}

func fakeEvents() []placement.Event {
	return []placement.Event{
		{Seq: 1, At: now.Add(-4 * time.Minute), Node: "n1", Kind: "zygote.up", Message: "vllm generation 2"},
		{Seq: 2, At: now.Add(-3 * time.Minute), Node: "n1", Kind: "placement.ready", Placement: "p-aaa1", Message: "opt-125m, warm, 2.81 s"},
		{Seq: 3, At: now.Add(-time.Minute), Node: "n2", Kind: "device.quarantined", Device: gpu, Message: "12 GiB still held\nby pid 4711"},
	}
}

func fakeTrace(id string) placement.Trace {
	return placement.Trace{
		Placement: id, TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", Node: "n1", Device: "cpu-0", Runtime: "vllm", Model: "opt-125m", Tier: placement.TierWarm, Begin: now.Add(-3 * time.Minute), Total: 2.81,
		Phases: []placement.Phase{
			{Name: "import", Proc: "zygote", Start: -300, Duration: 18.4, Before: true, SpanID: "01"},
			{Name: "fork", Proc: "engine", Start: -120, Duration: 0.031, Before: true, SpanID: "02"},
			{Name: "fork", Proc: "api", Start: -120, Duration: 0.029, Before: true, SpanID: "03"},
			{Name: "choose", Proc: "coordinator", Start: -0.004, Duration: 0.003, SpanID: "04"},
			{Name: "attach", Proc: "agent", Start: 0.002, Duration: 0.004, SpanID: "05"},
			{Name: "API server setup", Proc: "api", Start: 0.01, Duration: 1.1, SpanID: "06"},
			{Name: "Executor init", Proc: "engine", Start: 0.05, Duration: 2.2, SpanID: "07"},
			{Name: "Load model", Proc: "engine", Start: 0.3, Duration: 0.6, SpanID: "08", Parent: "07"},
			{Name: "Load weights", Proc: "engine", Start: 0.31, Duration: 0.18, SpanID: "09", Parent: "08"},
			{Name: "Allocate KV cache", Proc: "engine", Start: 0.95, Duration: 1.0, SpanID: "0a", Parent: "07"},
			{Name: "first token", Proc: "agent", Start: 2.3, Duration: 0.45, SpanID: "0b"},
		},
	}
}

// posts counts the placements that were really asked for (no dry runs).
func (f *fake) posts() []placement.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.requests)
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// wait waits until the fake has come to a point of a scenario.
func (f *fake) wait(t *testing.T, point string) {
	t.Helper()
	select {
	case got := <-f.seen:
		require.Equal(t, point, got)
	case <-time.After(10 * time.Second):
		t.Fatalf("never came to %s", strings.ToUpper(point))
	}
}
