package placement

import (
	"errors"
	"fmt"
)

// FieldError is bad input. Field is the JSON name of what is wrong.
type FieldError struct {
	Field   string
	Problem string
}

func (e *FieldError) Error() string { return e.Field + " " + e.Problem }

// Code says why a claim or a placement was refused. The values are on the wire.
type Code string

// The refusal codes. Each maps to one HTTP status, see [Code.Status].
const (
	CodeBadRequest     Code = "bad_request"     // malformed, or a field out of range
	CodeUnauthorized   Code = "unauthorized"    // nobody we know
	CodeForbidden      Code = "forbidden"       // known, but not allowed to
	CodeNotFound       Code = "not_found"       // no such placement, node, trace
	CodeModelNotFound  Code = "model_not_found" // the model folder is missing or unreadable on the node
	CodeModelInvalid   Code = "model_invalid"   // it is there but cannot be served
	CodeUnknownRuntime Code = "unknown_runtime" // no runtime of that name, or more than one and none named
	CodeArgRefused     Code = "arg_refused"     // an engine argument or env outside the allowlist
	CodeNoCapacity     Code = "no_capacity"     // every slot that would do is taken
	CodeNoWarm         Code = "no_warm"         // start=warm and nothing warm can be had
	CodeStaleAttempt   Code = "stale_attempt"   // a lower attempt than the highest seen
	CodeDraining       Code = "draining"        // the node takes no new placements
	CodeConflict       Code = "conflict"        // the same request id with another request; or not in the state for it
	CodeUnsupported    Code = "unsupported"     // this engine, or this device, cannot do that
	CodeStartFailed    Code = "start_failed"    // the engine died or never answered
	CodeWorkerLost     Code = "worker_lost"     // the engine died after it was ready
	CodeTimeout        Code = "timeout"         // the deadline passed
	CodeReleased       Code = "released"        // released while it was starting
	CodeDiskFull       Code = "disk_full"       // the journal cannot be written
	CodeUnavailable    Code = "unavailable"     // etcd or the agent cannot be reached
	CodeInternal       Code = "internal"        // a bug
)

var codeStatus = map[Code]int{
	CodeBadRequest: 400, CodeUnauthorized: 401, CodeForbidden: 403, CodeNotFound: 404, CodeModelNotFound: 422,
	CodeModelInvalid: 422, CodeUnknownRuntime: 422, CodeArgRefused: 403, CodeNoCapacity: 409, CodeNoWarm: 409,
	CodeStaleAttempt: 409, CodeDraining: 409, CodeConflict: 409, CodeUnsupported: 422, CodeStartFailed: 502, CodeWorkerLost: 502,
	CodeTimeout: 504, CodeReleased: 410, CodeDiskFull: 507, CodeUnavailable: 503, CodeInternal: 500,
}

// Status is the HTTP status of a refusal.
func (c Code) Status() int {
	if s, ok := codeStatus[c]; ok {
		return s
	}
	return 500
}

// Retryable reports whether another node may well accept what this one refused.
func (c Code) Retryable() bool {
	switch c {
	case CodeNoCapacity, CodeNoWarm, CodeDraining, CodeDiskFull, CodeUnavailable, CodeUnknownRuntime, CodeModelNotFound, CodeStartFailed, CodeWorkerLost:
		return true
	}
	return false
}

// Error is a refusal or a failure as it goes over the wire: what is wrong, and
// what to do about it. Refusals of a claim carry the node's fresh capacity.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Hint is what the operator can do next.
	Hint string `json:"hint,omitempty"`
	// Field names the bad field of a bad request.
	Field string `json:"field,omitempty"`
	// Detail is longer text: the last log lines of a dead engine.
	Detail string `json:"detail,omitempty"`
	// Capacity is the refusing node's capacity at the moment of the refusal.
	Capacity *Capacity `json:"capacity,omitempty"`
}

func (e *Error) Error() string {
	if e.Hint != "" {
		return e.Message + " (" + e.Hint + ")"
	}
	return e.Message
}

// Errorf makes an Error of a code.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint sets what the operator can do and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// AsError turns any error into one that can go over the wire; nil stays nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if f, ok := errors.AsType[*FieldError](err); ok {
		return &Error{Code: CodeBadRequest, Message: f.Error(), Field: f.Field}
	}
	return &Error{Code: CodeInternal, Message: err.Error()}
}
