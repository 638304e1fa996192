package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	agentapi "warmd/agent/api"
	"warmd/placement"
)

// answerGrace is how much longer than the placement's own time warmctl waits: the
// coordinator's answer to a timeout says more than ours could.
const answerGrace = 10 * time.Second

// followTries bounds how often a broken stream is taken up again: with the usual
// pause that is half a minute, in which a coordinator is restarted.
const followTries = 60

// place sends the request and follows it. A stream that breaks is taken up again
// with the same request id, which names the same placement. note is what the agent
// remarked, such as why the start had to be cold.
func (c *call) place(req placement.Request) (p placement.Placement, note string, err error) {
	k, at, err := c.coordinator()
	if err != nil {
		return p, "", err
	}
	wait := "ready"
	if c.flags.Bool("no-wait") || !c.flags.Bool("wait") {
		wait = "assigned"
	}
	ctx, cancel := context.WithTimeout(c.ctx, req.Timeout()+answerGrace)
	defer cancel()
	show := c.newProgress("placing "+req.ServedName(), "asking the coordinator", c.flags.Bool("verbose"))
	defer show.stop() // before run prints an error: the line is cleared first

	var id string
	var lines int
	var last bool
	each := func(p placement.Progress) {
		if p.Placement != nil && p.Placement.ID != "" {
			id = p.Placement.ID
		}
		if p.Message != "" && (p.Event == placement.EventAccepted || p.Event == placement.EventReady) {
			note = p.Message
		}
		lines, last = lines+1, p.Last()
		show.line(p)
	}
	for try := 1; ; try++ {
		lines, last = 0, false
		p, err = k.Place(ctx, req, wait, each)
		if err == nil {
			if note == "" {
				note = p.Reason
			}
			return p, note, nil
		}
		if c.ctx.Err() != nil {
			return p, "", &exitError{exitInterrupted, goesOn(id, req.ID)}
		}
		cause := c.notReached(err)
		var broken bool
		switch {
		case last: // it failed, and said why
		case lines > 0:
			broken = errors.Is(err, io.ErrUnexpectedEOF) || connectionCause(err) != ""
		case cause != "":
			// Nothing was sent if the first dial or its handshake failed; every other broken
			// connection leaves open whether the request arrived.
			broken = try > 1 || !strings.HasPrefix(cause, "dial ") && placement.AsError(err).Field != agentapi.FieldTLS
		default:
			broken = errors.Is(err, io.ErrUnexpectedEOF)
		}
		if !broken || try == followTries || ctx.Err() != nil {
			if cause != "" {
				err = explainUnreached(err, cause, at)
			}
			return p, "", placeError(err, id, req)
		}
		show.note("the connection broke; following the same placement again")
		select {
		case <-ctx.Done():
		case <-time.After(c.Poll):
		}
	}
}

// goesOn says after Ctrl-C what still runs and how to end it.
func goesOn(id, request string) *placement.Error {
	if id == "" {
		return placement.Errorf(placement.CodeInternal, "interrupted; the coordinator may have accepted the request").
			WithHint("warmctl ps shows it; the request id is %s", request)
	}
	return placement.Errorf(placement.CodeInternal, "interrupted; placement %s goes on", id).
		WithHint("`warmctl describe %s` shows it, `warmctl release %s` ends it", id, id)
}

// placeError adds to a failure what to look at next.
func placeError(err error, id string, req placement.Request) error {
	if errors.Is(err, context.DeadlineExceeded) {
		e := placement.Errorf(placement.CodeTimeout, "no answer within %s", req.Timeout()+answerGrace)
		if id != "" {
			return e.WithHint("`warmctl describe %s` shows where it stands, `warmctl release %s` ends it", id, id)
		}
		return e.WithHint("warmctl ps shows whether it was accepted; the request id is %s", req.ID)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return placement.Errorf(placement.CodeUnavailable, "the coordinator went away while placing %s", req.ServedName()).
			WithHint("warmctl ps shows whether it goes on; the same command with --request-id %s follows it", req.ID)
	}
	e := *placement.AsError(err)
	if id != "" {
		e.Message = "place " + req.ServedName() + " (" + id + "): " + e.Message
	}
	switch {
	case e.Hint != "":
	case exitOf[e.Code] == exitNoCapacity && !req.WaitCapacity:
		e.Hint = "--wait-capacity queues for a slot; warmctl capacity shows what is free"
	case id != "":
		e.Hint = fmt.Sprintf("warmctl describe %s, warmctl logs %s", id, id)
	}
	return &e
}
