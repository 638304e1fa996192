package placement

import "time"

// Placement is the durable record of a model put on a worker. The coordinator
// writes it to etcd by compare-and-set; the agent journals its own copy.
//
// Invariants:
//
//	Attempt >= 1 once State != pending, and never decreases
//	Node != ""  iff  a claim was made for this Attempt
//	Endpoint != ""  only if the agent accepted
//	State == ready  implies  a token came out of Endpoint
//	State == failed  implies  Reason != ""
type Placement struct {
	ID      string  `json:"id"`
	Request Request `json:"request"`
	State   State   `json:"state"`
	// Attempt counts claims; it is the fence: an agent refuses a lower one than
	// the highest it has seen for this ID.
	Attempt int    `json:"attempt"`
	Node    string `json:"node,omitempty"`
	Device  string `json:"device,omitempty"`
	Worker  string `json:"worker,omitempty"`
	Runtime string `json:"runtime,omitempty"`
	Tier    Tier   `json:"tier,omitempty"`
	// Endpoint is the base URL of the OpenAI routes, e.g. http://127.0.0.1:8123.
	Endpoint string `json:"endpoint,omitempty"`
	// Sleeping is set while the model of a ready placement is out of the device: the
	// agent's fact, shown and not stored with the coordinator's record. Requests are
	// answered 503 then.
	Sleeping bool `json:"sleeping,omitempty"`
	// Reason says why a placement failed, or was last sent back to pending.
	Reason string `json:"reason,omitempty"`
	// Hint says what an operator can do about Reason.
	Hint    string    `json:"hint,omitempty"`
	TraceID string    `json:"trace_id,omitempty"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	// StartSeconds is request received by the agent -> first token, 0 until ready.
	StartSeconds float64 `json:"start_seconds,omitempty"`
}

// MaxAttempts bounds how often one placement is claimed.
const MaxAttempts = 4
