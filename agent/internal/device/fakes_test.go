package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

// world is a device with scripted runtimes, memory, journal and probe. It runs in
// a synctest bubble: its clock is fake and nothing in it sleeps for real.
type world struct {
	t       *testing.T
	d       *Device
	cfg     Config
	vllm    *fakeRuntime
	mem     *fakeMemory
	journal *fakeJournal
	book    *Book
	ports   *Ports
	cancel  context.CancelFunc
	done    chan struct{}
	ids     int

	mu     sync.Mutex
	probe  func(ctx context.Context) error
	events []placement.Event
	broken []string // invariants that a published View broke
}

// newWorld makes a cpu-0 with two slots and one parked worker of runtime "vllm".
func newWorld(t *testing.T, change func(*Config)) *world {
	w := &world{
		t: t, vllm: newFakeRuntime(), mem: &fakeMemory{free: 100 << 30}, journal: newFakeJournal(),
		ports: &Ports{Host: "127.0.0.1"}, done: make(chan struct{}),
	}
	w.book = NewBook(w.journal)
	w.cfg = Config{
		Node: "n1", ID: "cpu-0", Kind: "cpu", Slots: 2, Warm: map[string]int{"vllm": 1},
		Runtimes: map[string]Runtime{"vllm": w.vllm}, Memory: w.mem, Journal: w.journal, Ports: w.ports,
		NewID: func() string { w.mu.Lock(); defer w.mu.Unlock(); w.ids++; return fmt.Sprintf("w%d", w.ids) },
		Probe: func(ctx context.Context, _, _ string) error {
			w.mu.Lock()
			p := w.probe
			w.mu.Unlock()
			return p(ctx)
		},
		Emit: func(e placement.Event) { w.mu.Lock(); defer w.mu.Unlock(); w.events = append(w.events, e) },
		Capacity: func() placement.Capacity {
			return placement.Capacity{Node: "n1", Devices: []placement.Device{w.d.View().Device}}
		},
		OnChange: func() { w.check() },
		Log:      slog.New(slog.DiscardHandler),
	}
	w.answer(time.Second)
	if change != nil {
		change(&w.cfg)
	}
	w.d = New(w.cfg)
	return w
}

// check holds every published View against the invariants of the package comment.
func (w *world) check() {
	if w.d == nil {
		return
	}
	v := w.d.View()
	if v == nil {
		return
	}
	d := v.Device
	w.mu.Lock()
	defer w.mu.Unlock()
	if d.Free+d.Busy+d.Quarantined != d.Slots || d.Free < 0 {
		w.broken = append(w.broken, fmt.Sprintf("free %d + busy %d + quarantined %d != slots %d", d.Free, d.Busy, d.Quarantined, d.Slots))
	}
	owner := map[string]string{}
	for _, x := range v.Workers {
		if x.ID == "" || x.Placement == "" {
			continue
		}
		if o, ok := owner[x.ID]; ok && o != x.Placement {
			w.broken = append(w.broken, fmt.Sprintf("worker %s has placements %s and %s", x.ID, o, x.Placement))
		}
		owner[x.ID] = x.Placement
	}
	warm := 0
	for _, n := range d.Warm {
		warm += n
	}
	if len(d.Placements) > d.Slots {
		w.broken = append(w.broken, fmt.Sprintf("%d placements on %d slots", len(d.Placements), d.Slots))
	}
}

func (w *world) start() {
	ctx, cancel := context.WithCancel(w.t.Context())
	w.cancel = cancel
	go func() { defer close(w.done); _ = w.d.Run(ctx) }()
	w.t.Cleanup(w.end)
}

func (w *world) end() {
	w.cancel()
	<-w.done
	require.Empty(w.t, w.broken)
}

// answer makes the probe succeed after d.
func (w *world) answer(d time.Duration) {
	w.probing(func(ctx context.Context) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// hang makes the probe wait for ever.
func (w *world) hang() {
	w.probing(func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) })
}

func (w *world) probing(f func(context.Context) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.probe = f
}

// claim makes a claim as the node would. The result is nil when it was accepted.
func (w *world) claim(id string, change ...func(*Claim, *placement.Request)) (*Entry, *placement.Error) {
	return w.attempt(id, 1, change...)
}

func (w *world) attempt(id string, attempt int, change ...func(*Claim, *placement.Request)) (*Entry, *placement.Error) {
	req := placement.Request{Model: "/models/tiny"}
	c := Claim{Runtime: "vllm", Deadline: time.Now().Add(time.Minute), Start: Start{Argv: []string{"--model", "x"}, ServeArgv: []string{"vllm"}}}
	for _, f := range change {
		f(&c, &req)
	}
	e, fresh, err := w.book.Open(id, attempt, req.Normalize(), time.Now())
	if err != nil {
		return nil, placement.AsError(err)
	}
	if !fresh {
		return e, e.Decided()
	}
	c.Entry = e
	c.Endpoint, err = w.ports.Reserve()
	require.NoError(w.t, err)
	if refusal := w.d.Claim(w.t.Context(), c); refusal != nil {
		c.Endpoint.Close()
		w.book.Refuse(e, refusal)
		return e, refusal
	}
	return e, nil
}

// follow reads a feed to its last line and returns it.
func (w *world) follow(e *Entry) placement.Progress {
	var last placement.Progress
	require.NoError(w.t, e.Feed.Follow(w.t.Context(), func(p placement.Progress) error { last = p; return nil }))
	return last
}

// place claims and follows to the last line.
func (w *world) place(id string, change ...func(*Claim, *placement.Request)) (*Entry, placement.Progress) {
	w.t.Helper()
	e, refusal := w.claim(id, change...)
	require.Nil(w.t, refusal)
	return e, w.follow(e)
}

func (w *world) device() placement.Device { return w.d.View().Device }

func (w *world) kinds() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		out = append(out, e.Kind)
	}
	return out
}

func cold(_ *Claim, r *placement.Request) { r.Start = placement.StartCold }

// fakeRuntime forks in 30 ms, like the real one.
type fakeRuntime struct {
	mu      sync.Mutex
	status  RuntimeStatus
	forkErr error
	forkFor time.Duration
	stopErr error
	loadErr error
	loadFor time.Duration // until the worker says that it serves
	dieAt   time.Duration // a forked worker dies that long after it was warm
	workers map[string]*fakeWorker
	forks   int
	spawns  []Spawn
}

func newFakeRuntime() *fakeRuntime {
	return &fakeRuntime{status: RuntimeStatus{Kind: "vllm", Zygote: "up"}, forkFor: 30 * time.Millisecond, workers: map[string]*fakeWorker{}}
}

func (r *fakeRuntime) set(f func()) { r.mu.Lock(); defer r.mu.Unlock(); f() }

func (r *fakeRuntime) Status() RuntimeStatus { r.mu.Lock(); defer r.mu.Unlock(); return r.status }

func (r *fakeRuntime) Fork(ctx context.Context, id string) (Worker, error) {
	r.mu.Lock()
	err, d, die := r.forkErr, r.forkFor, r.dieAt
	r.forks++
	r.mu.Unlock()
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	w := r.add(id, "warm")
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state == "dead" {
		return w, nil
	}
	w.events <- Event{Kind: EventPhase, Phase: PhaseEvent{Proc: "engine", Name: "park", Start: time.Now(), Dur: time.Millisecond}}
	if die > 0 {
		time.AfterFunc(die, func() { w.die("it died young") })
	}
	return w, nil
}

func (r *fakeRuntime) Spawn(ctx context.Context, s Spawn) (Worker, error) {
	r.mu.Lock()
	err := r.forkErr
	r.spawns = append(r.spawns, s)
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	w := r.add(s.ID, "loading")
	w.placement = s.Placement
	return w, nil
}

func (r *fakeRuntime) add(id, state string) *fakeWorker {
	w := &fakeWorker{rt: r, id: id, state: state, events: make(chan Event, 64), gone: make(chan struct{})}
	r.set(func() { r.workers[id] = w })
	return w
}

func (r *fakeRuntime) worker(id string) *fakeWorker {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.workers[id]
}

func (r *fakeRuntime) forkCount() int { r.mu.Lock(); defer r.mu.Unlock(); return r.forks }

// alive lists the workers that run.
func (r *fakeRuntime) alive() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(r.workers)) {
		select {
		case <-r.workers[id].gone:
		default:
			out = append(out, id)
		}
	}
	return out
}

type fakeWorker struct {
	rt     *fakeRuntime
	id     string
	events chan Event
	gone   chan struct{}

	mu        sync.Mutex
	state     string
	placement string
	attempt   int
	loads     []Load
	stops     []time.Duration
	drainFor  time.Duration
	sleepErr  error
}

var errDead = errors.New("it is dead")

func (f *fakeWorker) Load(_ context.Context, l Load) error {
	f.rt.mu.Lock()
	err, after := f.rt.loadErr, f.rt.loadFor
	f.rt.mu.Unlock()
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == "dead" {
		return errDead
	}
	f.loads = append(f.loads, l)
	if f.placement != "" && f.placement != l.Placement {
		return errors.New("it has a placement already")
	}
	f.placement, f.attempt, f.state = l.Placement, l.Attempt, "loading"
	if after == 0 {
		f.serves()
	} else {
		f.servesAfter(after)
	}
	return nil
}

func (f *fakeWorker) servesAfter(d time.Duration) {
	time.AfterFunc(d, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.serves()
	})
}

// serves needs f.mu.
func (f *fakeWorker) serves() {
	if f.state == "dead" {
		return
	}
	f.state = "serving"
	f.events <- Event{Kind: EventState, Message: f.state}
}

func (f *fakeWorker) Served() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == "dead" {
		return errDead
	}
	f.state = "serving"
	return nil
}

func (f *fakeWorker) Sleep(context.Context, time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == "dead" {
		return errDead
	}
	if f.sleepErr != nil {
		return f.sleepErr
	}
	f.state = "sleeping"
	f.events <- Event{Kind: EventState, Message: f.state}
	return nil
}

func (f *fakeWorker) Wake(context.Context) (PhaseEvent, error) {
	began := time.Now()
	time.Sleep(300 * time.Millisecond) // fake time
	f.mu.Lock()
	defer f.mu.Unlock()
	f.serves()
	return PhaseEvent{Proc: "api", Name: "wake", Start: began, Dur: time.Since(began)}, nil
}

func (f *fakeWorker) Stop(ctx context.Context, grace time.Duration) error {
	f.mu.Lock()
	f.stops = append(f.stops, grace)
	drain := min(f.drainFor, grace)
	f.mu.Unlock()
	f.rt.mu.Lock()
	err := f.rt.stopErr
	f.rt.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-time.After(drain + 5*time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	f.die("it was stopped")
	return nil
}

func (f *fakeWorker) die(cause string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.gone:
		return
	default:
	}
	close(f.gone)
	f.state = "dead"
	f.events <- Event{Kind: EventDead, Message: cause, Detail: "last words of " + f.id}
	close(f.events)
}

func (f *fakeWorker) Events() <-chan Event { return f.events }
func (f *fakeWorker) LogTail(int) string   { return "log of " + f.id }
func (f *fakeWorker) Record() json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"id":%q,"log":"/log/%s"}`, f.id, f.id))
}

func (f *fakeWorker) Info() Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	_, _ = fmt.Sscanf(strings.TrimLeft(f.id, "w"), "%d", &n)
	return Info{ID: f.id, Runtime: "vllm", State: f.state, Placement: f.placement, Attempt: f.attempt, EnginePID: 1000 + n, APIPID: 2000 + n}
}

func (f *fakeWorker) stopped() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.stops)
}

type fakeMemory struct {
	mu   sync.Mutex
	free int64
	pids []int
}

func (m *fakeMemory) set(f func()) { m.mu.Lock(); defer m.mu.Unlock(); f() }
func (m *fakeMemory) Free() (int64, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.free, 128 << 30, nil
}
func (m *fakeMemory) PIDs() ([]int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.pids), nil
}

type fakeJournal struct {
	mu     sync.Mutex
	err    error
	slow   time.Duration
	recs   map[string]Record
	parked map[string]ParkedRecord
	synced []string // state of each durable Put, in order
}

func newFakeJournal() *fakeJournal {
	return &fakeJournal{recs: map[string]Record{}, parked: map[string]ParkedRecord{}}
}

func (j *fakeJournal) set(f func()) { j.mu.Lock(); defer j.mu.Unlock(); f() }

func (j *fakeJournal) Put(r *Record, durable bool) error {
	j.mu.Lock()
	err, slow := j.err, j.slow
	j.mu.Unlock()
	if durable {
		time.Sleep(slow) // fake time
		if err != nil {
			return placement.Errorf(placement.CodeDiskFull, "%v", err)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if durable {
		j.synced = append(j.synced, r.Placement.ID+" "+string(r.Placement.State))
	}
	j.recs[r.Placement.ID] = *r
	return nil
}

func (j *fakeJournal) Park(p ParkedRecord)  { j.set(func() { j.parked[p.Worker] = p }) }
func (j *fakeJournal) Unpark(worker string) { j.set(func() { delete(j.parked, worker) }) }
