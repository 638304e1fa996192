package coordinator

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	agentapi "warmd/agent/api"
	"warmd/agent/api/access"
	"warmd/placement"
)

// restTime bounds a sleep beyond its grace, and a wake.
const restTime = 3 * time.Minute

// sleepPlacement has a model give its memory up. The record is not touched: whether it
// sleeps is its agent's to know, and is said with the node's capacity.
func (c *Coordinator) sleepPlacement(w http.ResponseWriter, r *http.Request) error {
	grace, err := graceOf(r)
	if err != nil {
		return err
	}
	return c.rest(w, r, grace, func(ctx context.Context, cl *agentapi.Client, id string) (placement.Placement, error) {
		return cl.Sleep(ctx, id, grace.Seconds())
	})
}

// wakePlacement answers when a token came out.
func (c *Coordinator) wakePlacement(w http.ResponseWriter, r *http.Request) error {
	return c.rest(w, r, 0, func(ctx context.Context, cl *agentapi.Client, id string) (placement.Placement, error) {
		return cl.Wake(ctx, id, r.Header.Get("Traceparent"))
	})
}

func (c *Coordinator) rest(w http.ResponseWriter, r *http.Request, grace time.Duration, ask func(context.Context, *agentapi.Client, string) (placement.Placement, error)) error {
	rec, err := c.find(w, r)
	if err != nil {
		return err
	}
	access.Concerns(r.Context(), rec.ID)
	if rec.Node == "" || rec.State.Terminal() {
		return placement.Errorf(placement.CodeConflict, "placement %s is %s", rec.ID, rec.State).WithHint("only what serves can sleep, and only what sleeps can be woken")
	}
	cl, err := c.world.holder(rec)
	if err != nil {
		return err
	}
	agentapi.Patient(w)
	ctx, cancel := context.WithTimeout(r.Context(), grace+restTime)
	defer cancel()
	p, err := ask(ctx, cl, rec.ID)
	if err != nil {
		return err
	}
	c.world.refresh(ctx, cl)
	agentapi.WriteJSON(w, http.StatusOK, p)
	return nil
}

// graceOf is the time that a caller gives to requests under way.
func graceOf(r *http.Request) (time.Duration, error) {
	v := r.URL.Query().Get("grace_seconds")
	if v == "" {
		return 10 * time.Second, nil
	}
	s, err := strconv.ParseFloat(v, 64)
	if err != nil || !(s >= 0 && s <= maxGrace.Seconds()) {
		return 0, &placement.FieldError{Field: "grace_seconds", Problem: fmt.Sprintf("%q must be a number between 0 and %g", v, maxGrace.Seconds())}
	}
	return time.Duration(s * float64(time.Second)), nil
}
