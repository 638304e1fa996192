// Package otlp receives the OpenTelemetry spans that an engine sends while it
// starts: the protobuf form over HTTP, on a loopback address, within bounds that
// an engine cannot exceed. The agent's flight recorder is made of it, and so is
// warmctl's bench for the engine that it starts itself: one reader, so that both
// arms of a comparison are measured with the same instrument.
//
//	Listen -> Endpoint, Env     what an engine's environment must say
//	Run                         Span after Span, as they come, until ctx ends
//
// Reading order: span.go, receiver.go, decode.go, birth.go.
package otlp

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
)

type (
	// TraceID names a trace, SpanID a span in it. The zero value names none.
	TraceID [16]byte
	SpanID  [8]byte
)

// Span is what we want of an OTLP span.
type Span struct {
	Trace      TraceID
	ID, Parent SpanID
	Name       string
	// Proc is the part of the engine that it is of: engine, worker, api.
	Proc string
	// PID is the process of it on this host, 0 when it does not say.
	PID        int
	Start, End uint64 // Unix nanoseconds
}

// NewTraceID and NewSpanID are random and never zero.
func NewTraceID() (id TraceID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// NewSpanID is random and never zero.
func NewSpanID() (id SpanID) {
	_, _ = rand.Read(id[:])
	return id
}

func (t TraceID) String() string { return hex.EncodeToString(t[:]) }
func (s SpanID) String() string  { return hex.EncodeToString(s[:]) }

// Context is a place in somebody's trace, as W3C's traceparent header says it.
type Context struct {
	Trace   TraceID
	Span    SpanID
	Sampled bool
}

// Traceparent is the header.
func (c Context) Traceparent() string {
	flags := "00"
	if c.Sampled {
		flags = "01"
	}
	return "00-" + c.Trace.String() + "-" + c.Span.String() + "-" + flags
}

// ParseTraceparent reads the header; what is not in W3C's form is none at all.
func ParseTraceparent(s string) (Context, bool) {
	var c Context
	f := strings.Split(s, "-")
	if len(f) < 4 || len(f[0]) != 2 || f[0] == "ff" || (f[0] == "00" && len(f) != 4) || len(f[1]) != 32 || len(f[2]) != 16 || len(f[3]) != 2 ||
		strings.ToLower(s) != s {
		return c, false
	}
	var version, flags [1]byte
	for _, part := range []struct {
		dst []byte
		src string
	}{{version[:], f[0]}, {c.Trace[:], f[1]}, {c.Span[:], f[2]}, {flags[:], f[3]}} {
		if _, err := hex.Decode(part.dst, []byte(part.src)); err != nil {
			return Context{}, false
		}
	}
	c.Sampled = flags[0]&1 == 1
	return c, c.Trace != TraceID{} && c.Span != SpanID{}
}

// Env makes an engine send its start-up spans to an endpoint, as children of a
// traceparent. The delay is longer than a warm start, so that no process sends in the
// middle of it (with 0.5 s, three processes did: 4 % of the start on two cores), and
// short enough for the spans to come while somebody still looks.
func Env(endpoint, traceparent string) map[string]string {
	return map[string]string{
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint,
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
		"OTEL_BSP_SCHEDULE_DELAY":            "2000",
		"TRACEPARENT":                        traceparent,
	}
}

// procOf says which process a span is of. vLLM names the kind of its engine and
// worker processes; its API server only says which module set the tracer up.
func procOf(kind, module, scope string) string {
	switch {
	case strings.HasPrefix(kind, "engine"):
		return "engine"
	case strings.HasPrefix(kind, "api"):
		return "api"
	case kind != "":
		return strings.ToLower(Printable(kind)) // "worker"
	case module == "vllm.engine_core":
		return "engine"
	case module == "vllm.worker":
		return "worker"
	case module == "vllm.llm_engine", strings.HasPrefix(module, "vllm.api"), strings.HasPrefix(scope, "vllm.entrypoints"):
		return "api"
	}
	return "engine"
}
