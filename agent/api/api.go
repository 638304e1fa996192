// Package api is the agent's HTTP interface: the types on the wire, the routes,
// and the Client that coordinators, warmctl and tests use. It listens on a Unix
// socket (always) and on TCP (when the operator says so); both carry the same
// routes. Bodies are JSON, streams are NDJSON, refusals are a placement.Error
// with the status of its code.
//
//	PUT    /v1/placements/{id}            claim and start; streams placement.Progress
//	GET    /v1/placements                 what this node holds
//	GET    /v1/placements/{id}
//	DELETE /v1/placements/{id}            release: drain, kill, refill (?grace_seconds=)
//	POST   /v1/placements/{id}/sleep      the model's memory is given up (?grace_seconds=)
//	POST   /v1/placements/{id}/wake       and taken back: answers after a token
//	GET    /v1/placements/{id}/trace      placement.Trace, of the last start or wake
//	GET    /v1/placements/{id}/logs       text; ?follow=1, ?tail=N lines
//	GET    /v1/traces                     all kept traces, newest first
//	GET    /v1/workers                    []Worker
//	GET    /v1/node                       this node's exact placement.Capacity
//	GET    /v1/capacity                   placement.Fleet: this member's view, with ages
//	GET    /v1/nodes                      the same as /v1/capacity
//	GET    /v1/events                     []placement.Event; ?follow=1 streams NDJSON
//	POST   /v1/drain, /v1/undrain         stop or start taking placements
//	GET    /metrics, /healthz
package api

import (
	"time"

	"warmd/placement"
)

// Claim is the body of PUT /v1/placements/{id}. First try, retry and recovery
// after a crash of the coordinator are the same call with the same body.
type Claim struct {
	Attempt int               `json:"attempt"`
	Request placement.Request `json:"request"`
	// Device pins the claim to one device; empty lets the agent choose.
	Device string `json:"device,omitempty"`
	// DeadlineSeconds is what is left of the placement's time when the call is
	// made; relative, because clocks of hosts differ.
	DeadlineSeconds float64 `json:"deadline_seconds"`
}

// Worker is one parked or serving pair, for `warmctl workers`.
type Worker struct {
	ID         string    `json:"id"`
	Node       string    `json:"node"`
	Device     string    `json:"device"`
	Runtime    string    `json:"runtime"`
	Generation int       `json:"generation"`
	State      string    `json:"state"` // the worker states of DESIGN section 7, or quarantined
	Tier       string    `json:"tier,omitempty"`
	Placement  string    `json:"placement,omitempty"`
	Endpoint   string    `json:"endpoint,omitempty"`
	Since      time.Time `json:"since"`
	EnginePID  int       `json:"engine_pid,omitempty"`
	APIPID     int       `json:"api_pid,omitempty"`
	RSSBytes   int64     `json:"rss_bytes,omitempty"`
	Problem    string    `json:"problem,omitempty"`
}

// NodeStatus is the answer of GET /v1/node.
type NodeStatus struct {
	Capacity placement.Capacity `json:"capacity"`
	Started  time.Time          `json:"started"`
	Workers  []Worker           `json:"workers"`
	// Ready says that every device had its first fingerprint and each runtime's
	// zygote is up or has said why not.
	Ready bool `json:"ready"`
	// PID and RunDir are the agent's own, for whoever looks on the host for what is
	// left over.
	PID     int      `json:"pid,omitempty"`
	RunDir  string   `json:"run_dir,omitempty"`
	Zygotes []Zygote `json:"zygotes,omitempty"`
}

// Zygote is the process that workers of a runtime are forked from.
type Zygote struct {
	Runtime    string `json:"runtime"`
	Generation int    `json:"generation"`
	PID        int    `json:"pid"`
}
