package device

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"warmd/agent/internal/worker"
	"warmd/placement"
)

// Runtime starts workers of one runtime on this device.
type Runtime interface {
	// Fork returns when the pair is warm.
	Fork(ctx context.Context, id string) (Worker, error)
	// Spawn runs a command that serves by itself; it returns when the process runs.
	Spawn(ctx context.Context, s Spawn) (Worker, error)
	// Status is cheap: it answers from memory.
	Status() RuntimeStatus
}

// RuntimeStatus is what the zygote of a runtime is up to.
type RuntimeStatus struct {
	Kind    string // vllm, exec
	Zygote  string // up, starting, down
	Problem string
}

// Spawn is a cold start.
type Spawn struct {
	ID        string
	Argv      []string
	Env       []string
	Placement string
	Attempt   int
}

// Load is what a warm worker needs to serve.
type Load struct {
	Placement string
	Attempt   int
	Argv      []string
	Env       map[string]string
	// Listener is the listening socket; Load does not close it.
	Listener *os.File
}

// Worker is one engine pair. Its methods may be called from any goroutine.
type Worker interface {
	Load(ctx context.Context, l Load) error
	// Stop drains within grace, kills the pair and returns when every process of it
	// is proven gone. It is idempotent.
	Stop(ctx context.Context, grace time.Duration) error
	// Served tells a cold worker, which cannot know it, that it serves.
	Served() error
	// Sleep takes the weights out of the device, Wake brings them back and returns the
	// phase that this took. What is as asked already stays so.
	Sleep(ctx context.Context, grace time.Duration) error
	Wake(ctx context.Context) (PhaseEvent, error)
	// Events ends with EventDead and is closed then; closed without it, the runtime
	// has stopped looking and the worker lives on.
	Events() <-chan Event
	Info() Info
	// Record is what a restarted agent needs to adopt the worker.
	Record() json.RawMessage
	LogTail(lines int) string
}

// Event is one thing a worker said: a phase, an error, a state or its death.
type (
	Event      = worker.Event
	PhaseEvent = worker.PhaseEvent
)

// The kinds of Event that the loop acts on.
const (
	EventPhase = worker.EventPhase
	EventError = worker.EventError
	EventState = worker.EventState
	EventDead  = worker.EventDead
)

// serving is the state of a worker both of whose halves say that they serve.
const serving = string(worker.Serving)

// Info is what can be said about a worker at a glance.
type Info struct {
	ID, Runtime       string
	Generation        int
	EnginePID, APIPID int
	State             string
	// Placement and Attempt are the worker's own word on what it was given.
	Placement string
	Attempt   int
	LogPath   string
}

// PIDs lists the processes of the worker.
func (i Info) PIDs() []int {
	var out []int
	for _, p := range []int{i.EnginePID, i.APIPID} {
		if p > 0 {
			out = append(out, p)
		}
	}
	return out
}

// Memory measures the device. A method may take milliseconds: the loop never
// calls it, only its goroutines do.
type Memory interface {
	Free() (free, total int64, err error)
	// PIDs lists the processes that hold memory of the device.
	PIDs() ([]int, error)
}

// Journal keeps what must outlive the agent.
type Journal interface {
	// Put stores a placement's record. durable waits for the disk and reports an
	// error; otherwise the record is kept in memory until the disk takes it. The record
	// is not changed afterwards: the journal may keep it.
	Put(r *Record, durable bool) error
	// Park stores a parked worker, Unpark forgets it.
	Park(p ParkedRecord)
	Unpark(worker string)
}

// Record is a placement as the journal keeps it.
type Record struct {
	Placement placement.Placement `json:"placement"`
	// WorkerRecord is Worker.Record() of the placement's worker, once it has one.
	WorkerRecord json.RawMessage `json:"worker_record,omitempty"`
	// Received is when the claim came, Deadline when its start must be over.
	Received time.Time `json:"received"`
	Deadline time.Time `json:"deadline"`
	// Ending is the state the placement is to end in, set once that is decided and
	// before anything is stopped: a restarted agent finishes it.
	Ending placement.State `json:"ending,omitempty"`
	// Error is why it failed, for whoever asks again.
	Error *placement.Error `json:"error,omitempty"`
}

// ParkedRecord is a parked worker as the journal keeps it.
type ParkedRecord struct {
	Worker  string          `json:"worker"`
	Device  string          `json:"device"`
	Runtime string          `json:"runtime"`
	Record  json.RawMessage `json:"record"`
}

// Trace collects the phases of one start.
type Trace interface {
	Phase(name, proc string, start time.Time, d time.Duration)
	Env() map[string]string
	Ready(at time.Time)
	Fail(reason string)
}

// Observer counts for /metrics.
type Observer interface {
	Started(tier placement.Tier, seconds float64)
	Ended(result string)
}
