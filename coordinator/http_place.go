package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	agentapi "warmd/agent/api"
	"warmd/agent/api/access"
	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// ageHeader says how old an answer from memory is; it is set while etcd is away.
const ageHeader = "Warmd-Age-Seconds"

// postPlacement places. The answer is one placement, or with Accept:
// application/x-ndjson a line of progress for each thing that happens. A refusal that
// comes before anything happened is an HTTP error in both.
func (c *Coordinator) postPlacement(w http.ResponseWriter, r *http.Request) error {
	var req placement.Request
	if err := agentapi.ReadJSON(w, r, &req); err != nil {
		return err
	}
	if r.URL.Query().Get("dry_run") != "" {
		d, err := c.placer.Decide(req)
		if err != nil {
			return err
		}
		if d.Candidates == nil {
			d.Candidates = []placement.Candidate{}
		}
		agentapi.WriteJSON(w, http.StatusOK, d)
		return nil
	}
	wait := r.URL.Query().Get("wait")
	if wait != "" && wait != "ready" && wait != "assigned" {
		return &placement.FieldError{Field: "wait", Problem: fmt.Sprintf("%q must be assigned or ready", wait)}
	}
	if req.Traceparent == "" {
		if tp := r.Header.Get("Traceparent"); len(tp) == 55 {
			req.Traceparent = tp
		}
	}
	f, err := c.placer.Place(req)
	if err != nil {
		return err
	}
	agentapi.Patient(w)
	follow := func(ctx context.Context, each func(placement.Progress) bool) error {
		return f.Follow(ctx, func(p placement.Progress) bool {
			if p.Placement != nil {
				access.Concerns(ctx, p.Placement.ID)
			}
			return each(p)
		})
	}
	enough := func(p placement.Progress) bool {
		return p.Last() || wait == "assigned" && p.Event == placement.EventAccepted
	}
	if strings.Contains(r.Header.Get("Accept"), "application/x-ndjson") {
		return c.streamPlacement(w, r, follow, enough)
	}
	var last placement.Progress
	if err := follow(r.Context(), func(p placement.Progress) bool {
		last = p
		return !enough(p)
	}); err != nil {
		return err
	}
	if last.Error != nil {
		return last.Error
	}
	agentapi.WriteJSON(w, http.StatusCreated, last.Placement)
	return nil
}

func (c *Coordinator) streamPlacement(w http.ResponseWriter, r *http.Request,
	follow func(context.Context, func(placement.Progress) bool) error, enough func(placement.Progress) bool) error {
	var lines *agentapi.Lines
	var refused error
	err := follow(r.Context(), func(p placement.Progress) bool {
		if lines == nil {
			if p.Event == placement.EventFailed && p.Placement == nil && p.Error != nil {
				refused = p.Error
				return false
			}
			lines = agentapi.NewLines(w, http.StatusOK)
		}
		return lines.Write(p) == nil && !enough(p)
	})
	switch {
	case refused != nil:
		return refused
	case err == nil || r.Context().Err() != nil:
		return nil
	case lines == nil:
		return err
	}
	// The status is sent: what went wrong can only be a line, and one that says that
	// the outcome is unknown.
	_ = lines.Write(placement.Progress{Event: placement.EventFailed, Error: placement.AsError(err)})
	return nil
}

func (c *Coordinator) getPlacements(w http.ResponseWriter, r *http.Request) error {
	now := c.moment()
	records, _, err := c.records(w, r)
	if err != nil {
		return err
	}
	all := r.URL.Query().Get("all") != ""
	out := []placement.Placement{}
	for _, rec := range records {
		if p := now.present(rec); all || !p.State.Terminal() {
			out = append(out, p)
		}
	}
	agentapi.WriteJSON(w, http.StatusOK, out)
	return nil
}

func (c *Coordinator) getPlacement(w http.ResponseWriter, r *http.Request) error {
	now := c.moment()
	rec, err := c.find(w, r)
	if err != nil {
		return err
	}
	agentapi.WriteJSON(w, http.StatusOK, now.present(rec))
	return nil
}

// records lists from etcd, or from memory with its age while etcd is away: then away
// says why.
func (c *Coordinator) records(w http.ResponseWriter, r *http.Request) (all []store.Record, away, err error) {
	if st, _ := c.world.health.state(); st == "ok" {
		all, away = c.world.List(r.Context())
		if away == nil || r.Context().Err() != nil {
			return all, nil, away
		}
	}
	st, age := c.world.health.state()
	if away == nil {
		away = placement.Errorf(placement.CodeUnavailable, "%s", st)
	}
	w.Header().Set(ageHeader, strconv.FormatFloat(age.Seconds(), 'f', 1, 64))
	return c.world.All(), away, nil
}

// find is one record by id, by unique id prefix, or by served name. Living placements
// go before ended ones: a name is used again and again. What is not remembered while
// etcd is away may be there all the same: nobody is told that it is not.
func (c *Coordinator) find(w http.ResponseWriter, r *http.Request) (store.Record, error) {
	key := r.PathValue("id")
	if rec, err := c.world.Get(r.Context(), key); err == nil {
		return rec, nil
	}
	records, away, err := c.records(w, r)
	if err != nil {
		return store.Record{}, err
	}
	rec, err := match(records, key)
	if away != nil && err != nil && placement.AsError(err).Code == placement.CodeNotFound {
		return rec, away
	}
	return rec, err
}

func match(records []store.Record, key string) (store.Record, error) {
	var found []store.Record
	for _, living := range []bool{true, false} {
		for _, rec := range records {
			if rec.ID == key {
				return rec, nil
			}
			if rec.State.Terminal() != living && (rec.Request.Name == key || len(key) > 2 && strings.HasPrefix(rec.ID, key)) {
				found = append(found, rec)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	switch len(found) {
	case 0:
		return store.Record{}, placement.Errorf(placement.CodeNotFound, "no placement has the id or the name %q", key).WithHint("warmctl ps lists them")
	case 1:
		return found[0], nil
	}
	// Of ended ones the latest is meant: nobody can act on any of them.
	if found[0].State.Terminal() {
		return slices.MaxFunc(found, func(a, b store.Record) int { return a.Updated.Compare(b.Updated) }), nil
	}
	ids := make([]string, 0, len(found))
	for _, rec := range found {
		ids = append(ids, rec.ID+" on "+rec.Node)
	}
	return store.Record{}, placement.Errorf(placement.CodeBadRequest, "%q names %d placements: %s", key, len(found), strings.Join(ids, ", ")).WithHint("give the id")
}

// moment is what is known here beside the records: placements under way, nodes that are
// silent, and models that sleep. Take it before the records are read: see placer.Live.
type moment struct {
	live   map[string]placement.Placement
	silent map[string]placement.NodeView
	asleep map[string]bool
}

func (c *Coordinator) moment() moment {
	m := moment{live: c.placer.Live(), silent: map[string]placement.NodeView{}, asleep: map[string]bool{}}
	for _, n := range c.opt.View.Fleet().Nodes {
		if !n.Alive {
			m.silent[n.Node] = n
		}
		for _, d := range n.Devices {
			for id := range d.Sleeping {
				m.asleep[id] = true
			}
		}
	}
	return m
}

// present is a record as people should see it: with what its placement is like by now,
// and with a word on a node that is silent.
func (m moment) present(rec store.Record) placement.Placement {
	p := rec.Placement
	if now, ok := m.live[rec.ID]; ok && now.Attempt == p.Attempt && placement.CanMove(p.State, now.State) {
		p = now
	}
	p.Sleeping = m.asleep[p.ID] && p.State == placement.Ready
	if n, ok := m.silent[p.Node]; ok && p.State == placement.Ready && p.Reason == "" {
		p.Reason = fmt.Sprintf("node %s is %s, last heard %.0f s ago", n.Node, n.Status, n.AgeSeconds)
	}
	return p
}

// releaseTime bounds a release beyond its grace: the proof that the slot is free.
const releaseTime = 30 * time.Second

// maxGrace bounds what a caller may ask for.
const maxGrace = time.Hour

// deletePlacement releases: the record first, so that no placer goes on with it, then
// the worker. If the node is away the record is released all the same, and the sweeper
// lets go of the worker when the node is back.
func (c *Coordinator) deletePlacement(w http.ResponseWriter, r *http.Request) error {
	grace, err := graceOf(r)
	if err != nil {
		return err
	}
	rec, err := c.find(w, r)
	if err != nil {
		return err
	}
	access.Concerns(r.Context(), rec.ID)
	agentapi.Patient(w)
	rec, err = c.recordRelease(r.Context(), rec)
	if err != nil {
		return err
	}
	if rec.Node == "" || rec.State == placement.Failed {
		agentapi.WriteJSON(w, http.StatusOK, rec.Placement)
		return nil
	}
	// The caller may hang up: the slot must become free all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), grace+releaseTime)
	defer cancel()
	cl, err := c.world.holder(rec)
	if err == nil {
		// Only the agent may say that there is no such placement.
		_, err = cl.Release(ctx, rec.ID, grace.Seconds())
		if e := placement.AsError(err); e != nil && e.Code == placement.CodeNotFound {
			err = nil
		}
	}
	if err != nil {
		return placement.Errorf(placement.CodeUnavailable, "placement %s is released, but node %s did not confirm that its worker is gone: %s", rec.ID, rec.Node, placement.AsError(err).Message).
			WithHint("nothing to do: the worker is let go of when the node answers again")
	}
	c.world.refresh(ctx, cl)
	agentapi.WriteJSON(w, http.StatusOK, rec.Placement)
	return nil
}

// recordRelease writes the end of a placement. What has ended stays as it ended.
func (c *Coordinator) recordRelease(ctx context.Context, rec store.Record) (store.Record, error) {
	for {
		if rec.State.Terminal() {
			return rec, nil
		}
		next := rec
		next.State, next.Reason, next.Updated = placement.Released, "released on request", time.Now().UTC().Round(0)
		got, err := c.world.Update(ctx, next, store.NoFence)
		if !errors.Is(err, store.ErrChanged) {
			if err == nil {
				c.events.add(placement.Event{Node: got.Node, Kind: "placement.released", Placement: got.ID, Worker: got.Worker, Device: got.Device, Message: got.Request.Name + " released on request"})
			}
			return got, err
		}
		if rec, err = c.world.Get(ctx, rec.ID); err != nil {
			return rec, err
		}
	}
}
