package placement

import "time"

// Phase is one span of a start. Times are seconds relative to the moment the
// agent received the request: a phase with a negative start was done before it,
// which is what warmth means.
type Phase struct {
	// Name is vLLM's own span name where it has one ("Load model"), ours otherwise
	// ("fork", "attach", "bind", "first token").
	Name string `json:"name"`
	// Proc is who did it: client, coordinator, agent, zygote, engine, api.
	Proc     string  `json:"proc"`
	Start    float64 `json:"start_seconds"`
	Duration float64 `json:"duration_seconds"`
	// Before is set when the phase was over before the request.
	Before bool `json:"before_request,omitempty"`
	// SpanID and Parent are the OpenTelemetry ids, for the tree.
	SpanID string `json:"span_id,omitempty"`
	Parent string `json:"parent_span_id,omitempty"`
}

// Trace is the record of one start.
type Trace struct {
	Placement string    `json:"placement"`
	TraceID   string    `json:"trace_id"`
	Node      string    `json:"node"`
	Device    string    `json:"device"`
	Runtime   string    `json:"runtime"`
	Model     string    `json:"model"`
	Tier      Tier      `json:"tier"`
	Begin     time.Time `json:"begin"`
	// Total is request -> first token in seconds; 0 while the start goes on.
	Total  float64 `json:"total_seconds"`
	Phases []Phase `json:"phases"`
	Failed string  `json:"failed,omitempty"`
	// Root is the span of the whole start: the parent of its phases. Parent is the
	// caller's, when the request came in a trace of its own.
	Root   string `json:"root_span_id,omitempty"`
	Parent string `json:"parent_span_id,omitempty"`
	// Unsampled says that the caller wants its trace to be kept by nobody else.
	Unsampled bool `json:"unsampled,omitempty"`
}

// Event is one thing that happened, for people: `warmctl events`.
type Event struct {
	Seq  uint64    `json:"seq"`
	At   time.Time `json:"at"`
	Node string    `json:"node"`
	// Kind is dotted noun.verb: worker.dead, placement.ready, zygote.up, node.drain.
	Kind      string `json:"kind"`
	Placement string `json:"placement,omitempty"`
	Worker    string `json:"worker,omitempty"`
	Device    string `json:"device,omitempty"`
	Message   string `json:"message"`
}

// Progress is one line of a placement's stream: PUT on the agent, and POST with
// ?stream on the coordinator, answer with these as NDJSON. The last line is
// ready, failed or released.
type Progress struct {
	// Event is queued, assigned, accepted, phase, retry, ready, failed or released.
	Event     string     `json:"event"`
	Elapsed   float64    `json:"elapsed_seconds"`
	Placement *Placement `json:"placement,omitempty"`
	Phase     *Phase     `json:"phase,omitempty"`
	Error     *Error     `json:"error,omitempty"`
	// Capacity is the node's capacity after the event; the placer uses it to drop
	// its own claim from the snapshot.
	Capacity *Capacity `json:"capacity,omitempty"`
	Message  string    `json:"message,omitempty"`
}

// The values of Progress.Event.
const (
	EventQueued   = "queued"
	EventAssigned = "assigned"
	EventAccepted = "accepted"
	EventPhase    = "phase"
	EventRetry    = "retry"
	EventReady    = "ready"
	EventFailed   = "failed"
	EventReleased = "released"
)

// Last reports whether no further line follows.
func (p Progress) Last() bool {
	return p.Event == EventReady || p.Event == EventFailed || p.Event == EventReleased
}
