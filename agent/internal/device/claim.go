package device

import (
	"context"
	"slices"
	"time"

	"warmd/placement"
)

// Claim is a claim that the node found sound: the model is there, the arguments
// are allowed, the endpoint is reserved. Only the slot is missing.
type Claim struct {
	Entry   *Entry
	Runtime string
	// Start is what to run, both ways; the loop decides which.
	Start    Start
	Endpoint *Endpoint
	Deadline time.Time
}

// Start is a prepared start.
type Start struct {
	// Argv and Env go to a parked worker.
	Argv []string
	Env  map[string]string
	// ServeArgv and FullEnv are the cold start of the same thing.
	ServeArgv []string
	FullEnv   []string
	// Cold is set when only a cold start will do; ColdReason says why.
	Cold       bool
	ColdReason string
}

// Claim accepts a claim or refuses it with a *placement.Error. When it returns
// nil the claim is on the disk and its start is under way; the entry's feed tells
// the rest. The endpoint is the device's then, else it stays the caller's.
func (d *Device) Claim(ctx context.Context, c Claim) *placement.Error {
	var l *life
	var refusal *placement.Error
	// Neither wait ends with the caller's patience: both are short, and a claim
	// that was taken must be answered by what became of it.
	if err := d.ask(context.WithoutCancel(ctx), func() { l, refusal = d.take(c) }); err != nil {
		return placement.AsError(err)
	}
	if refusal != nil {
		return refusal
	}
	return <-l.accepted
}

// take picks the slot and the worker. It runs on the loop.
func (d *Device) take(c Claim) (*life, *placement.Error) {
	h := d.have()
	req := c.Entry.Placement().Request
	rt := d.cfg.Runtimes[c.Runtime]
	switch {
	case d.draining:
		return nil, placement.Errorf(placement.CodeDraining, "node %s takes no new placements", d.cfg.Node).
			WithHint("warmctl undrain %s", d.cfg.Node)
	case d.fault != "":
		return nil, placement.Errorf(placement.CodeNoCapacity, "%s takes nothing: %s", d.cfg.ID, d.fault)
	case rt == nil:
		return nil, placement.Errorf(placement.CodeUnknownRuntime, "runtime %s is not for device %s", c.Runtime, d.cfg.ID)
	case d.busy[c.Entry.ID] != nil:
		return nil, placement.Errorf(placement.CodeNoCapacity, "an earlier attempt of placement %s still holds a slot", c.Entry.ID)
	case h.Free() <= 0:
		return nil, placement.Errorf(placement.CodeNoCapacity, "every slot of %s is taken (%d busy, %d quarantined)", d.cfg.ID, h.Busy, h.Quarantined)
	case req.MemoryBytes > 0 && d.free.Load() < req.MemoryBytes:
		return nil, placement.Errorf(placement.CodeNoCapacity, "%s has %d MiB free, %d MiB wanted", d.cfg.ID, d.free.Load()>>20, req.MemoryBytes>>20)
	}
	l := newLife(d, c)
	if refusal := d.pick(l, rt.Status(), req); refusal != nil {
		return nil, refusal
	}
	d.busy[c.Entry.ID] = l
	c.Entry.owner.Store(d)
	d.reconcile() // with the slot gone the parked of other runtimes give way
	l.after = d.retiring()
	d.wg.Go(l.run)
	return l, nil
}

// pick decides how the life starts: a parked worker, one that is being forked, a
// fork now, or cold.
func (d *Device) pick(l *life, s RuntimeStatus, req placement.Request) *placement.Error {
	cold, why := l.claim.Start.Cold, l.claim.Start.ColdReason
	switch {
	case req.Start == placement.StartCold:
		cold, why = true, "a cold start was asked for"
	case s.Kind == "exec":
		cold, why = true, "runtime "+l.claim.Runtime+" is of kind exec and has no warm stage"
	}
	if !cold {
		if p := d.bestParked(l.claim.Runtime); p != nil {
			d.drop(p)
			l.parked = p
			return nil
		}
		if s.Zygote == "up" && d.backoff[l.claim.Runtime].due().IsZero() {
			p := d.fork(l.claim.Runtime)
			d.drop(p)
			l.parked = p
			return nil
		}
		why = "runtime " + l.claim.Runtime + " has no zygote (" + s.Zygote + ")"
		if s.Problem != "" {
			why += ": " + s.Problem
		}
		if b := d.backoff[l.claim.Runtime]; b != nil && s.Zygote == "up" {
			why = "workers of runtime " + l.claim.Runtime + " die before they are warm: " + b.last.Error()
		}
	}
	if req.Start == placement.StartWarm {
		return placement.Errorf(placement.CodeNoWarm, "start=warm cannot be had: %s", why).
			WithHint("place with start=auto, or look at `warmd runtime check %s`", l.claim.Runtime)
	}
	l.cold, l.coldReason = true, why
	return nil
}

// bestParked is the oldest warm worker of a runtime, or one that will be warm in
// a moment.
func (d *Device) bestParked(runtime string) *parked {
	for _, want := range []ParkState{Warm, Forking} {
		i := slices.IndexFunc(d.parked, func(p *parked) bool { return p.runtime == runtime && p.state == want })
		if i >= 0 {
			return d.parked[i]
		}
	}
	return nil
}

// Release ends a placement and returns when its slot is free, or when ctx is
// over: the release goes on then. Releasing what is over already succeeds.
func (d *Device) Release(ctx context.Context, e *Entry, grace time.Duration) (placement.Placement, error) {
	err := d.ask(ctx, func() {
		if l := d.busy[e.ID]; l != nil {
			l.quit(&ending{state: placement.Released, reason: "released", grace: grace})
		}
	})
	if err != nil {
		return e.Placement(), err
	}
	select {
	case <-e.Done():
		return e.Placement(), nil
	case <-d.stopped:
		return e.Placement(), errStopped
	case <-ctx.Done():
		return e.Placement(), placement.Errorf(placement.CodeTimeout, "placement %s is still being ended", e.ID).
			WithHint("it goes on by itself: ask again")
	}
}
