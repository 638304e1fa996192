package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	agentapi "warmd/agent/api"
)

// What a coordinator says about an answer stands in its header, because the body
// is the same list as ever.
const (
	ageHeader  = "Warmd-Age-Seconds" // etcd is away: this was remembered so long ago
	missHeader = "Warmd-Unreachable" // these nodes did not answer, theirs is missing
)

// get asks for a list and keeps the remarks on it.
func get[T any](ctx context.Context, c *call, k *agentapi.Conn, path string) (out T, err error) {
	resp, err := k.Open(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, agentapi.MaxAnswer)).Decode(&out); err != nil {
		return out, fmt.Errorf("decode GET %s: %w", path, err)
	}
	c.remarks = nil
	if age := resp.Header.Get(ageHeader); age != "" {
		c.remarks = append(c.remarks, "etcd does not answer the coordinator: this is what it remembers, "+age+" s old")
	}
	if missed := resp.Header.Get(missHeader); missed != "" {
		c.remarks = append(c.remarks, "without the nodes that did not answer: "+strings.ReplaceAll(missed, ",", ", "))
	}
	return out, nil
}

// footnotes prints on stderr what keeps an answer from being the whole and the
// latest. JSON on stdout stays as it is either way.
func (c *call) footnotes(who answerer) {
	if who.instead != "" {
		fmt.Fprintf(c.Err, "answered by the local agent, for its node only: cannot %s\n", who.instead)
		return
	}
	for _, r := range c.remarks {
		fmt.Fprintln(c.Err, printable(r))
	}
}
