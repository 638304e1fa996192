// Package api is the coordinator's HTTP interface: what warmctl and other
// clients call to place models and to ask about the fleet. openapi.yaml beside
// this file describes it, and a test holds the handlers against it.
//
//	POST   /v1/placements                   place; ?wait=assigned|ready (default ready),
//	                                        Accept: application/x-ndjson streams placement.Progress
//	POST   /v1/placements?dry_run=1         placement.Decision, nothing is placed
//	GET    /v1/placements                   []placement.Placement; ?all=1 with failed and released
//	GET    /v1/placements/{id}              by id, by unique id prefix, or by served name
//	DELETE /v1/placements/{id}              release (?grace_seconds=)
//	POST   /v1/placements/{id}/sleep        the model's memory is given up (?grace_seconds=)
//	POST   /v1/placements/{id}/wake         and taken back: answers after a token
//	GET    /v1/placements/{id}/trace        from the node that ran it
//	GET    /v1/placements/{id}/logs         text; ?tail=N&follow=1
//	GET    /v1/traces                       kept traces of all reachable nodes
//	GET    /v1/workers                      workers of all reachable nodes
//	GET    /v1/capacity, /v1/nodes          placement.Fleet
//	POST   /v1/nodes/{node}/drain, /undrain placement.Capacity
//	GET    /v1/events                       []placement.Event; ?follow=1
//	GET    /v1/status                       Status
//	GET    /metrics, /healthz
package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	agentapi "warmd/agent/api"
	"warmd/placement"
)

// Status is one coordinator's own word about itself.
type Status struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// Leader is the name of the coordinator that sweeps, as far as this one knows.
	Leader string `json:"leader,omitempty"`
	// Etcd is ok, or what is wrong with it.
	Etcd string `json:"etcd"`
}

// Client calls one coordinator. It is safe for concurrent use.
type Client struct{ *agentapi.Conn }

// NewClient makes a Client for a coordinator's address; see [agentapi.NewConn].
func NewClient(addr string, rt http.RoundTripper) (*Client, error) {
	c, err := agentapi.NewConn(addr, rt)
	if err != nil {
		return nil, err
	}
	return &Client{c}, nil
}

// Place places a model and waits until it is ready (or, with wait "assigned",
// until an agent has accepted it), calling each for every line of progress.
func (c *Client) Place(ctx context.Context, r placement.Request, wait string, each func(placement.Progress)) (placement.Placement, error) {
	var last placement.Progress
	err := agentapi.Stream(ctx, c.Conn, http.MethodPost, "/v1/placements?wait="+url.QueryEscape(wait), r, func(p placement.Progress) bool {
		last = p
		if each != nil {
			each(p)
		}
		return !p.Last() && !(wait == "assigned" && p.Event == placement.EventAccepted)
	})
	var got placement.Placement
	if last.Placement != nil {
		got = *last.Placement
	}
	if err != nil {
		return got, err
	}
	if last.Error != nil {
		return got, last.Error
	}
	return got, nil
}

// DryRun returns the decision for a request without placing anything.
func (c *Client) DryRun(ctx context.Context, r placement.Request) (out placement.Decision, err error) {
	return out, c.Do(ctx, http.MethodPost, "/v1/placements?dry_run=1", r, &out)
}

// Placements lists records; all includes failed and released ones.
func (c *Client) Placements(ctx context.Context, all bool) (out []placement.Placement, err error) {
	path := "/v1/placements"
	if all {
		path += "?all=1"
	}
	return out, c.Do(ctx, http.MethodGet, path, nil, &out)
}

// Placement finds one record by id, unique id prefix or served name.
func (c *Client) Placement(ctx context.Context, id string) (out placement.Placement, err error) {
	return out, c.Do(ctx, http.MethodGet, placementPath(id), nil, &out)
}

// Release ends a placement and answers when its slot is free.
func (c *Client) Release(ctx context.Context, id string, graceSeconds float64) (out placement.Placement, err error) {
	return out, c.Do(ctx, http.MethodDelete, fmt.Sprintf("%s?grace_seconds=%g", placementPath(id), graceSeconds), nil, &out)
}

// Sleep has a placement's model give its memory up, after at most graceSeconds for
// requests under way.
func (c *Client) Sleep(ctx context.Context, id string, graceSeconds float64) (out placement.Placement, err error) {
	return out, c.Do(ctx, http.MethodPost, fmt.Sprintf("%s/sleep?grace_seconds=%g", placementPath(id), graceSeconds), nil, &out)
}

// Wake has it take its memory back, and answers when a token came out.
func (c *Client) Wake(ctx context.Context, id string) (out placement.Placement, err error) {
	return out, c.Do(ctx, http.MethodPost, placementPath(id)+"/wake", nil, &out)
}

// Trace returns the phases of a placement's last start, or wake.
func (c *Client) Trace(ctx context.Context, id string) (out placement.Trace, err error) {
	return out, c.Do(ctx, http.MethodGet, placementPath(id)+"/trace", nil, &out)
}

// Logs opens the log of a placement's worker. The caller closes it.
func (c *Client) Logs(ctx context.Context, id string, tail int, follow bool) (io.ReadCloser, error) {
	q := url.Values{"tail": {fmt.Sprint(tail)}}
	if follow {
		q.Set("follow", "1")
	}
	resp, err := c.Open(ctx, http.MethodGet, placementPath(id)+"/logs?"+q.Encode(), nil, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Traces returns the kept traces of all reachable nodes.
func (c *Client) Traces(ctx context.Context) (out []placement.Trace, err error) {
	return out, c.Do(ctx, http.MethodGet, "/v1/traces", nil, &out)
}

// Workers returns the workers of all reachable nodes.
func (c *Client) Workers(ctx context.Context) (out []agentapi.Worker, err error) {
	return out, c.Do(ctx, http.MethodGet, "/v1/workers", nil, &out)
}

// Fleet returns this coordinator's view of all nodes, each with its age.
func (c *Client) Fleet(ctx context.Context) (out placement.Fleet, err error) {
	return out, c.Do(ctx, http.MethodGet, "/v1/capacity", nil, &out)
}

// SetDrain makes a node refuse, or take, new placements.
func (c *Client) SetDrain(ctx context.Context, node string, drain bool) (out placement.Capacity, err error) {
	verb := "undrain"
	if drain {
		verb = "drain"
	}
	return out, c.Do(ctx, http.MethodPost, "/v1/nodes/"+url.PathEscape(node)+"/"+verb, nil, &out)
}

// Events returns the kept events of the fleet, or follows them.
func (c *Client) Events(ctx context.Context, follow bool, each func(placement.Event) bool) error {
	return agentapi.StreamEvents(ctx, c.Conn, follow, each)
}

// Status returns the coordinator's word about itself.
func (c *Client) Status(ctx context.Context) (out Status, err error) {
	return out, c.Do(ctx, http.MethodGet, "/v1/status", nil, &out)
}

func placementPath(id string) string { return "/v1/placements/" + url.PathEscape(id) }
