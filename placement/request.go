package placement

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Request is what a caller wants: a model, on a runtime, started a certain way.
// It is stored with the placement and sent to the agent unchanged.
type Request struct {
	// ID makes placing idempotent: the same ID names the same placement for 24 h.
	ID string `json:"request_id,omitempty"`
	// Model is a model folder on the node: an absolute path, or a name that the
	// node's configured model roots resolve.
	Model string `json:"model"`
	// Name is what clients call the model (served model name). Default: the last
	// element of Model.
	Name string `json:"name,omitempty"`
	// Runtime names an installed runtime; empty means the only one a node has.
	Runtime string `json:"runtime,omitempty"`
	// Node pins the placement to one node; empty means any.
	Node string `json:"node,omitempty"`
	// Start is warm, cold or auto (the default).
	Start Start `json:"start,omitempty"`
	// Args are engine arguments ("--max-model-len=512"), checked against the
	// agent's allowlist.
	Args []string `json:"args,omitempty"`
	// Env is added to the engine's environment at load. A key that is read at
	// import (it changes the runtime's profile key) forces a cold start.
	Env map[string]string `json:"env,omitempty"`
	// MemoryBytes is what the placement needs on the device; 0 means a whole slot.
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	// TimeoutSeconds bounds the whole placement, request to first token; 0 means
	// DefaultTimeout.
	TimeoutSeconds float64 `json:"timeout_seconds,omitempty"`
	// WaitCapacity queues the request for a slot, within the timeout, instead of
	// failing it when nothing is free.
	WaitCapacity bool `json:"wait_capacity,omitempty"`
	// Traceparent joins the trace of this placement to the caller's (W3C form).
	Traceparent string `json:"traceparent,omitempty"`
}

// DefaultTimeout bounds a placement whose request says nothing: twice what a cold
// start took on the slowest host we measured.
const DefaultTimeout = 5 * time.Minute

// Limits of a request; a larger one is refused with a FieldError.
const (
	MaxArgs     = 64
	MaxEnv      = 64
	MaxText     = 4096 // bytes of one model path, argument or environment value
	MaxNameText = 128
)

var (
	nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:-]*$`)
	idRE   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)
	envRE  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// Timeout is the bound of the whole placement.
func (r Request) Timeout() time.Duration {
	if r.TimeoutSeconds <= 0 {
		return DefaultTimeout
	}
	return time.Duration(r.TimeoutSeconds * float64(time.Second))
}

// ServedName is what clients put into "model".
func (r Request) ServedName() string {
	if r.Name != "" {
		return r.Name
	}
	m := strings.TrimRight(r.Model, "/")
	return m[strings.LastIndex(m, "/")+1:]
}

// Normalize fills defaults, so that two requests that mean the same are equal.
func (r Request) Normalize() Request {
	if r.Start == "" {
		r.Start = StartAuto
	}
	r.Name = r.ServedName()
	return r
}

// Validate checks the form of a request (not whether the model exists: only the
// agent can see that). The error is a *FieldError that names the field.
func (r Request) Validate() error {
	switch {
	case r.Model == "":
		return &FieldError{"model", "is empty: give a model folder or the name of one"}
	case len(r.Model) > MaxText || strings.ContainsAny(r.Model, "\x00\n\r"):
		return &FieldError{"model", fmt.Sprintf("must be one line of at most %d bytes", MaxText)}
	case strings.HasPrefix(r.Model, "-"):
		return &FieldError{"model", fmt.Sprintf("%q looks like a flag: put flags before the model", r.Model)}
	case r.Name != "" && (len(r.Name) > MaxNameText || !nameRE.MatchString(r.Name)):
		return &FieldError{"name", fmt.Sprintf("%q must match %s", clip(r.Name), nameRE)}
	case r.Runtime != "" && !idRE.MatchString(r.Runtime):
		return &FieldError{"runtime", fmt.Sprintf("%q must match %s", clip(r.Runtime), idRE)}
	case r.Node != "" && !idRE.MatchString(r.Node):
		return &FieldError{"node", fmt.Sprintf("%q must match %s", clip(r.Node), idRE)}
	case r.ID != "" && !idRE.MatchString(r.ID):
		return &FieldError{"request_id", fmt.Sprintf("%q must match %s", clip(r.ID), idRE)}
	case r.Start != "" && r.Start != StartAuto && r.Start != StartWarm && r.Start != StartCold:
		return &FieldError{"start", fmt.Sprintf("%q must be auto, warm or cold", clip(string(r.Start)))}
	case r.MemoryBytes < 0:
		return &FieldError{"memory_bytes", "must not be negative"}
	case r.TimeoutSeconds < 0 || r.TimeoutSeconds > 86400 || r.TimeoutSeconds != r.TimeoutSeconds:
		return &FieldError{"timeout_seconds", "must be between 0 and 86400"}
	case len(r.Args) > MaxArgs:
		return &FieldError{"args", fmt.Sprintf("has %d entries, at most %d are allowed", len(r.Args), MaxArgs)}
	case len(r.Env) > MaxEnv:
		return &FieldError{"env", fmt.Sprintf("has %d entries, at most %d are allowed", len(r.Env), MaxEnv)}
	case len(r.Traceparent) > 64:
		return &FieldError{"traceparent", "must be a W3C traceparent of 55 bytes"}
	}
	for i, a := range r.Args {
		if len(a) > MaxText || strings.ContainsRune(a, 0) {
			return &FieldError{fmt.Sprintf("args[%d]", i), fmt.Sprintf("must be at most %d bytes without NUL", MaxText)}
		}
	}
	for k, v := range r.Env {
		if !envRE.MatchString(k) || len(k) > MaxNameText {
			return &FieldError{"env", fmt.Sprintf("key %q must match %s", clip(k), envRE)}
		}
		if len(v) > MaxText || strings.ContainsRune(v, 0) {
			return &FieldError{"env." + k, fmt.Sprintf("must be at most %d bytes without NUL", MaxText)}
		}
	}
	return nil
}

// Same reports whether two normalized requests ask for the same thing, the
// request id and the trace aside: it decides whether a repeated request id is a
// retry or a mistake.
func (r Request) Same(o Request) bool {
	if r.Model != o.Model || r.Name != o.Name || r.Runtime != o.Runtime || r.Node != o.Node ||
		r.Start != o.Start || r.MemoryBytes != o.MemoryBytes || len(r.Args) != len(o.Args) || len(r.Env) != len(o.Env) {
		return false
	}
	for i := range r.Args {
		if r.Args[i] != o.Args[i] {
			return false
		}
	}
	for k, v := range r.Env {
		if w, ok := o.Env[k]; !ok || w != v {
			return false
		}
	}
	return true
}

// Key names what a request asks for: two requests of one key are [Request.Same].
func (r Request) Key() string {
	r = r.Normalize()
	r.ID, r.TimeoutSeconds, r.WaitCapacity, r.Traceparent = "", 0, false, ""
	if len(r.Args) == 0 {
		r.Args = nil
	}
	if len(r.Env) == 0 {
		r.Env = nil
	}
	b, err := json.Marshal(r) // maps in the order of their keys
	if err != nil {
		return "" // a struct of strings and numbers: it always encodes
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12])
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
