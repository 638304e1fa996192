package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Worker is a parked pair, or one cold process. Its methods are safe for
// concurrent use: each is a request to the worker's loop.
type Worker struct {
	rt     *Runtime
	id     string
	gen    int
	cold   bool
	log    string
	inbox  chan func() // run by the loop, one at a time
	events *events
	done   chan struct{} // closed when it is dead: every process is proven gone
	ended  chan struct{} // closed when the loop has ended, dead or not

	helpers sync.WaitGroup // goroutines of the loop; they end with its context

	loopState // touched by the loop only

	mu   sync.Mutex // guards info, the readers' copy
	info Info
}

// LoadSpec is a placement for a parked pair.
type LoadSpec struct {
	Placement string
	Attempt   int
	// Argv are the flags of `vllm serve`, without the model as a positional.
	Argv []string
	// Env is added to both halves before the engine reads any of it.
	Env map[string]string
	// Listener is the socket that clients connect to already. It stays the caller's,
	// who may close it once Load has returned.
	Listener *os.File
}

// StateError says that a worker is in the wrong state for a request.
type StateError struct {
	Worker, Request, Placement string
	State                      State
}

func (e *StateError) Error() string {
	if e.Placement != "" {
		return fmt.Sprintf("%s worker %s: it is %s with placement %s", e.Request, e.Worker, e.State, e.Placement)
	}
	return fmt.Sprintf("%s worker %s: it is %s", e.Request, e.Worker, e.State)
}

// Load gives a warm pair its placement and returns when both halves took it;
// events tell how it goes on. The same placement and attempt again is no error. A
// pair that took half of a load is killed.
func (w *Worker) Load(ctx context.Context, s LoadSpec) error {
	return reaching(ctx, func() error { return w.loadOnce(ctx, s) })
}

// reaching tries again while a half cannot be reached: one that was just adopted, or
// dropped its connection, answers in a moment.
func reaching(ctx context.Context, try func() error) error {
	for began := time.Now(); ; {
		err := try()
		if !errors.Is(err, errUnreachable) || time.Since(began) > reachTime || ctx.Err() != nil {
			return err
		}
		pause(ctx, 5*time.Millisecond)
	}
}

// reachTime is what a half is given to be connected again.
const reachTime = 2 * time.Second

var errUnreachable = errors.New("a half does not answer on its control socket")

func (w *Worker) loadOnce(ctx context.Context, s LoadSpec) error {
	res := make(chan error, 1)
	if !w.post(func() { w.load(ctx, s, res) }) {
		return w.gone("load")
	}
	select {
	case err := <-res:
		return err
	case <-w.ended:
		return w.gone("load")
	}
}

// Served tells a cold worker that it serves: nothing else does, the caller's
// probe knows. For a pair that serves it does nothing.
func (w *Worker) Served() error {
	res := make(chan error, 1)
	if !w.post(func() { res <- w.served() }) {
		return w.gone("mark")
	}
	select {
	case err := <-res:
		return err
	case <-w.ended:
		return w.gone("mark")
	}
}

// Stop lets a serving worker finish what runs, for at most grace, and kills it.
// It returns nil when every process of it, grandchildren too, is proven gone.
// Calling it again, from anywhere, waits for the same end; a shorter grace
// hurries it. When ctx ends first the killing goes on.
func (w *Worker) Stop(ctx context.Context, grace time.Duration) error {
	w.post(func() { w.stop(grace) })
	select {
	case <-w.done:
		return nil
	case <-w.ended:
		select {
		case <-w.done:
			return nil
		default:
		}
		return w.gone("stop")
	case <-ctx.Done():
		rec := w.Record()
		left := remaining(slices.Collect(maps.Values(rec.procs())), []string{rec.group()}, map[Proc]bool{})
		return fmt.Errorf("stop worker %s: %w; still running: %v", w.id, ctx.Err(), left)
	}
}

// Done is closed when every process of the worker is proven gone.
func (w *Worker) Done() <-chan struct{} { return w.done }

// Events delivers what happens, oldest first. dead is the last, then the channel
// closes; it closes without dead when Run ends. Nobody needs to read it.
func (w *Worker) Events() <-chan Event { return w.events.ch }

// Info is what there is to know of the worker now.
func (w *Worker) Info() Info {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.info
	i.DroppedEvents = int(w.events.dropped.Load())
	return i
}

// Record is what a later agent needs to adopt the worker.
func (w *Worker) Record() Record { return w.Info().Record }

// Stats adds up what the processes of the worker use now.
func (w *Worker) Stats(context.Context) (Stats, error) {
	var roots []Proc
	for _, p := range w.Record().procs() {
		roots = append(roots, p)
	}
	s := usage(roots...)
	if s.Processes == 0 {
		return s, fmt.Errorf("measure worker %s: %w", w.id, ErrGone)
	}
	return s, nil
}

// LogTail returns the last n lines of what the worker printed.
func (w *Worker) LogTail(n int) string { return tail(w.log, n) }

func (w *Worker) dir() string { return w.rt.workerDir(w.gen, w.id) }

// gone explains a request to a worker whose loop has ended.
func (w *Worker) gone(request string) error {
	select {
	case <-w.done:
		return &StateError{Worker: w.id, Request: request, State: Dead}
	default:
		return fmt.Errorf("%s worker %s: %w", request, w.id, ErrNotRunning)
	}
}

// post hands f to the loop; false when that has ended.
func (w *Worker) post(f func()) bool {
	select {
	case w.inbox <- f:
		return true
	case <-w.ended:
		return false
	}
}

// register makes a worker known under its id and starts its loop. The record's
// state is where it begins: Spawning, or what an adopted one is in.
func (r *Runtime) register(rec Record) (*Worker, error) {
	w := &Worker{
		rt: r, id: rec.ID, gen: rec.Generation, cold: rec.Cold, log: rec.Log,
		inbox: make(chan func(), 64), events: newEvents(), done: make(chan struct{}), ended: make(chan struct{}),
		info: Info{Record: rec, LogPath: rec.Log, StateSince: time.Now()},
	}
	w.loopState = newLoopState(rec)
	r.mu.Lock()
	if _, held := r.workers[rec.ID]; held {
		r.mu.Unlock()
		return nil, fmt.Errorf("register worker %s: there is one of that id", rec.ID)
	}
	r.workers[rec.ID] = w
	r.mu.Unlock()
	err := os.MkdirAll(w.dir(), 0o770)
	if err == nil && !r.task(w.loop) {
		err = ErrNotRunning
	}
	if err != nil {
		r.forget(w)
		return nil, fmt.Errorf("register worker %s: %w", rec.ID, err)
	}
	return w, nil
}

func (r *Runtime) forget(w *Worker) {
	r.mu.Lock()
	if r.workers[w.id] == w {
		delete(r.workers, w.id)
	}
	r.mu.Unlock()
}

// checkID keeps an id one path element that fits into a socket path.
func checkID(id string) error {
	if id == "" || len(id) > 64 || id != filepath.Base(id) || id[0] == '.' {
		return errors.New("worker id must be one path element of at most 64 bytes")
	}
	return nil
}
