package agent

import (
	"net/http"
	"sort"
	"time"

	"warmd/agent/api"
	"warmd/agent/internal/device"
	"warmd/placement"
)

// putPlacement claims, and follows the start to its end. The same call again, by
// the same caller or another, follows the same start.
func (a *Agent) putPlacement(w http.ResponseWriter, r *http.Request) {
	received := time.Now()
	var c api.Claim
	if err := api.ReadJSON(w, r, &c); err != nil {
		api.WriteError(w, err)
		return
	}
	e, err := a.claim(r.Context(), r.PathValue("id"), c, received)
	if err != nil {
		api.WriteError(w, err)
		return
	}
	// When the client goes away the guard of the start begins to count.
	lines := api.NewLines(w, http.StatusOK)
	_ = e.Feed.Follow(r.Context(), func(p placement.Progress) error { return lines.Write(p) })
}

func (a *Agent) listPlacements(w http.ResponseWriter, _ *http.Request) {
	all := a.book.List()
	sort.Slice(all, func(i, j int) bool {
		if !all[i].Created.Equal(all[j].Created) {
			return all[i].Created.After(all[j].Created)
		}
		return all[i].ID < all[j].ID
	})
	api.WriteJSON(w, 200, all)
}

func (a *Agent) getPlacement(w http.ResponseWriter, r *http.Request) {
	e := a.book.Get(r.PathValue("id"))
	if e == nil {
		api.WriteError(w, a.unknown(r.PathValue("id")))
		return
	}
	api.WriteJSON(w, 200, e.Placement())
}

// Grace of a release that says nothing, and the longest that is taken.
const (
	defaultGrace = 5
	maxGrace     = 3600
)

// deletePlacement ends a placement and answers when its slot is free. An id that
// this node never held is remembered as released, so that a claim of it which is
// still under way cannot start afterwards.
func (a *Agent) deletePlacement(w http.ResponseWriter, r *http.Request) {
	grace, err := number(r, "grace_seconds", defaultGrace, 0, maxGrace)
	if err != nil {
		api.WriteError(w, err)
		return
	}
	id := r.PathValue("id")
	if err := (placement.Request{ID: id, Model: "m"}).Validate(); err != nil {
		api.WriteError(w, err)
		return
	}
	api.Patient(w) // the grace may be longer than a request may take to arrive
	e := a.book.Await(id)
	for ; e == nil; e = a.book.Await(id) {
		if p, ok := a.book.Tombstone(id, time.Now()); ok {
			api.WriteJSON(w, 200, p)
			return
		}
	}
	if d := e.Owner(); d != nil {
		if _, err := d.Release(r.Context(), e, time.Duration(grace*float64(time.Second))); err != nil {
			api.WriteError(w, err)
			return
		}
	}
	api.WriteJSON(w, 200, e.Placement())
}

// sleepPlacement has a model give its memory up. The answer comes when it has.
func (a *Agent) sleepPlacement(w http.ResponseWriter, r *http.Request) {
	grace, err := number(r, "grace_seconds", defaultGrace, 0, maxGrace)
	if err != nil {
		api.WriteError(w, err)
		return
	}
	a.rest(w, r, func(d *device.Device, e *device.Entry) (placement.Placement, error) {
		return d.Sleep(r.Context(), e, time.Duration(grace*float64(time.Second)))
	})
}

// wakePlacement answers when a token came out.
func (a *Agent) wakePlacement(w http.ResponseWriter, r *http.Request) {
	a.rest(w, r, func(d *device.Device, e *device.Entry) (placement.Placement, error) {
		return d.Wake(r.Context(), e, r.Header.Get("Traceparent"))
	})
}

func (a *Agent) rest(w http.ResponseWriter, r *http.Request, do func(*device.Device, *device.Entry) (placement.Placement, error)) {
	id := r.PathValue("id")
	e := a.book.Get(id)
	if e == nil || e.Owner() == nil {
		api.WriteError(w, a.unknown(id))
		return
	}
	api.Patient(w)
	p, err := do(e.Owner(), e)
	if err != nil {
		api.WriteError(w, err)
		return
	}
	api.WriteJSON(w, 200, p)
}

func (a *Agent) getTrace(w http.ResponseWriter, r *http.Request) {
	t, ok := a.recorder.Get(r.PathValue("id"))
	if !ok {
		api.WriteError(w, placement.Errorf(placement.CodeNotFound, "node %s keeps no trace of placement %.130q", a.cfg.Node, r.PathValue("id")))
		return
	}
	api.WriteJSON(w, 200, t)
}

func (a *Agent) listTraces(w http.ResponseWriter, _ *http.Request) {
	all := a.recorder.List()
	if all == nil {
		all = []placement.Trace{}
	}
	api.WriteJSON(w, 200, all)
}
