package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"warmd/placement"
)

// Client calls one agent. It is safe for concurrent use.
type Client struct{ *Conn }

// NewClient makes a Client for an agent's address; see [NewConn].
func NewClient(addr string, rt http.RoundTripper) (*Client, error) {
	c, err := NewConn(addr, rt)
	if err != nil {
		return nil, err
	}
	return &Client{c}, nil
}

// Place claims and follows: each is called for every line until the last, or
// until it returns false. A refusal is a *placement.Error with the node's fresh
// capacity. io.ErrUnexpectedEOF means that the outcome is unknown: call again.
func (c *Client) Place(ctx context.Context, id string, claim Claim, each func(placement.Progress) bool) error {
	return Stream(ctx, c.Conn, http.MethodPut, placementPath(id), claim, func(p placement.Progress) bool {
		return each(p) && !p.Last()
	})
}

// Placements lists what the node holds.
func (c *Client) Placements(ctx context.Context) (out []placement.Placement, err error) {
	return out, c.Do(ctx, http.MethodGet, "/v1/placements", nil, &out)
}

// Placement returns one placement the node holds, or held and still remembers.
func (c *Client) Placement(ctx context.Context, id string) (out placement.Placement, err error) {
	return out, c.Do(ctx, http.MethodGet, placementPath(id), nil, &out)
}

// Release drains for at most graceSeconds, kills, and answers when the slot is
// proven free. Releasing what is already gone succeeds.
func (c *Client) Release(ctx context.Context, id string, graceSeconds float64) (out placement.Placement, err error) {
	return out, c.Do(ctx, http.MethodDelete, fmt.Sprintf("%s?grace_seconds=%g", placementPath(id), graceSeconds), nil, &out)
}

// Sleep has a placement's model give its memory up, after at most graceSeconds for
// requests under way. What sleeps already stays so.
func (c *Client) Sleep(ctx context.Context, id string, graceSeconds float64) (out placement.Placement, err error) {
	return out, c.Do(ctx, http.MethodPost, fmt.Sprintf("%s/sleep?grace_seconds=%g", placementPath(id), graceSeconds), nil, &out)
}

// Wake has it take its memory back, and answers when a token came out. A traceparent
// that is not empty makes the wake a part of that trace.
func (c *Client) Wake(ctx context.Context, id, traceparent string) (out placement.Placement, err error) {
	header := http.Header{}
	if traceparent != "" {
		header.Set("Traceparent", traceparent)
	}
	resp, err := c.Open(ctx, http.MethodPost, placementPath(id)+"/wake", nil, header)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, MaxAnswer)).Decode(&out); err != nil {
		return out, fmt.Errorf("decode wake of %s: %w", id, err)
	}
	return out, nil
}

// Trace returns the phases of a placement's start.
func (c *Client) Trace(ctx context.Context, id string) (out placement.Trace, err error) {
	return out, c.Do(ctx, http.MethodGet, placementPath(id)+"/trace", nil, &out)
}

// Traces returns all kept traces, newest first.
func (c *Client) Traces(ctx context.Context) (out []placement.Trace, err error) {
	return out, c.Do(ctx, http.MethodGet, "/v1/traces", nil, &out)
}

// Logs opens the worker's log of a placement. The caller closes it.
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

// Workers lists parked and serving workers.
func (c *Client) Workers(ctx context.Context) (out []Worker, err error) {
	return out, c.Do(ctx, http.MethodGet, "/v1/workers", nil, &out)
}

// Node returns this node's exact state.
func (c *Client) Node(ctx context.Context) (out NodeStatus, err error) {
	return out, c.Do(ctx, http.MethodGet, "/v1/node", nil, &out)
}

// Fleet returns this member's view of all nodes, each with its age.
func (c *Client) Fleet(ctx context.Context) (out placement.Fleet, err error) {
	return out, c.Do(ctx, http.MethodGet, "/v1/capacity", nil, &out)
}

// Events returns the kept events, or follows them until each returns false.
func (c *Client) Events(ctx context.Context, follow bool, each func(placement.Event) bool) error {
	return StreamEvents(ctx, c.Conn, follow, each)
}

// SetDrain makes the node refuse, or take, new placements.
func (c *Client) SetDrain(ctx context.Context, drain bool) (out placement.Capacity, err error) {
	verb := "undrain"
	if drain {
		verb = "drain"
	}
	return out, c.Do(ctx, http.MethodPost, "/v1/"+verb, nil, &out)
}

// StreamEvents reads GET /v1/events of an agent or a coordinator.
func StreamEvents(ctx context.Context, c *Conn, follow bool, each func(placement.Event) bool) error {
	if follow {
		return Stream(ctx, c, http.MethodGet, "/v1/events?follow=1", nil, each)
	}
	var all []placement.Event
	if err := c.Do(ctx, http.MethodGet, "/v1/events", nil, &all); err != nil {
		return err
	}
	for _, e := range all {
		if !each(e) {
			break
		}
	}
	return nil
}

func placementPath(id string) string { return "/v1/placements/" + url.PathEscape(id) }
