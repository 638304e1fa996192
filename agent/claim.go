package agent

import (
	"context"
	"errors"
	"time"

	"warmd/agent/api"
	"warmd/agent/internal/device"
	"warmd/agent/internal/spec"
	"warmd/placement"
)

// claim takes a claim or refuses it. The answer is the entry to follow: of this
// claim, or of the same one that came before. A refusal is a *placement.Error
// with the capacity of this moment.
func (a *Agent) claim(ctx context.Context, id string, c api.Claim, received time.Time) (*device.Entry, error) {
	e, err := a.tryClaim(ctx, id, c, received)
	if err == nil {
		a.metrics.claim("accepted")
		return e, nil
	}
	refusal := *placement.AsError(err)
	now := a.Capacity()
	refusal.Capacity = &now
	a.metrics.claim(string(refusal.Code))
	return nil, &refusal
}

func (a *Agent) tryClaim(ctx context.Context, id string, c api.Claim, received time.Time) (*device.Entry, error) {
	if err := checkClaim(id, c); err != nil {
		return nil, err
	}
	req := c.Request.Normalize()
	e, fresh, err := a.book.Open(id, c.Attempt, req, received)
	if err != nil {
		return nil, err
	}
	if !fresh {
		if refusal := e.Decided(); refusal != nil {
			return nil, refusal
		}
		return e, nil
	}
	if err := a.begin(ctx, e, c, req); err != nil {
		refusal := placement.AsError(err)
		a.book.Refuse(e, refusal)
		return nil, refusal
	}
	return e, nil
}

// checkClaim checks the form of a claim.
func checkClaim(id string, c api.Claim) error {
	r := c.Request
	r.ID = id
	if err := r.Validate(); err != nil {
		return placement.AsError(err)
	}
	if c.Request.ID != "" {
		if err := c.Request.Validate(); err != nil {
			return placement.AsError(err)
		}
	}
	field := func(name, problem string) error {
		return placement.AsError(&placement.FieldError{Field: name, Problem: problem})
	}
	switch {
	case c.Attempt < 1 || c.Attempt > 1<<30:
		return field("attempt", "must be 1 or more: it is the claim's fence")
	case c.DeadlineSeconds < 0 || c.DeadlineSeconds > 86400 || c.DeadlineSeconds != c.DeadlineSeconds:
		return field("deadline_seconds", "must be between 0 and 86400")
	}
	return nil
}

// begin finds the claim sound, then a slot for it.
func (a *Agent) begin(ctx context.Context, e *device.Entry, c api.Claim, req placement.Request) error {
	if a.draining.Load() {
		return placement.Errorf(placement.CodeDraining, "node %s takes no new placements", a.cfg.Node).WithHint("warmctl undrain %s", a.cfg.Node)
	}
	now := a.Capacity()
	rt, passed := placement.FindRuntime(now.Runtimes, req, a.cfg.Node)
	if passed != nil {
		return placement.Errorf(passed.Code, "node %s %s", a.cfg.Node, passed.Reason).WithHint("warmd runtime ls lists what is installed on the node")
	}
	port, err := a.ports.Reserve()
	if err != nil {
		if _, ok := errors.AsType[*placement.Error](err); ok {
			return err
		}
		return placement.Errorf(placement.CodeInternal, "%v", err).WithHint("check endpoint_host in the agent's configuration")
	}
	start, err := a.prepare(ctx, rt.Name, req, port.Port)
	if err == nil {
		deadline := e.Record().Received.Add(deadlineOf(c))
		err = a.place(ctx, now, c.Device, req, device.Claim{Entry: e, Runtime: rt.Name, Start: start, Endpoint: port, Deadline: deadline})
	}
	if err != nil {
		port.Close()
	}
	return err
}

func deadlineOf(c api.Claim) time.Duration {
	if c.DeadlineSeconds > 0 {
		return time.Duration(c.DeadlineSeconds * float64(time.Second))
	}
	return c.Request.Timeout()
}

// prepare looks at the model and builds both forms of the start.
func (a *Agent) prepare(ctx context.Context, rt string, req placement.Request, port int) (device.Start, error) {
	select { // reading headers is disk work: bounded, so that many claims cannot starve the rest
	case a.checks <- struct{}{}:
		defer func() { <-a.checks }()
	case <-ctx.Done():
		return device.Start{}, placement.Errorf(placement.CodeUnavailable, "the caller went away")
	}
	m, p := a.runtimes[rt].manifest, a.policy()
	dir, err := spec.Resolve(p.ModelRoots, req.Model)
	if err != nil {
		return device.Start{}, err
	}
	if m.Kind != "exec" {
		if err := spec.CheckModelFor(dir, req); err != nil {
			return device.Start{}, err
		}
	}
	s, err := p.Build(m, req, dir, port)
	if err != nil {
		return device.Start{}, err
	}
	return device.Start{
		Argv: s.Argv, Env: s.Env, ServeArgv: s.ServeArgv, FullEnv: s.FullEnv, Cold: s.Cold, ColdReason: s.ColdReason,
	}, nil
}

// policy is what requests may ask for at this moment; a claim is judged by one.
func (a *Agent) policy() spec.Policy {
	c := a.live.Load()
	return spec.Policy{AllowArgs: c.AllowArgs, AllowEnv: c.AllowEnv, ModelRoots: c.ModelRoots, Host: a.cfg.EndpointHost}
}

// place tries the node's devices in the order that the fleet's own rule gives
// them, until a loop accepts.
func (a *Agent) place(ctx context.Context, now placement.Capacity, pin string, req placement.Request, c device.Claim) error {
	req.Node = ""
	var views []placement.NodeView
	for _, d := range now.Devices {
		if pin != "" && d.ID != pin {
			continue
		}
		one := now
		one.Devices = []placement.Device{d}
		views = append(views, placement.NodeView{Capacity: one, Alive: true})
	}
	if len(views) == 0 {
		return placement.Errorf(placement.CodeNotFound, "node %s has no device %q", a.cfg.Node, pin)
	}
	var last error
	decision := placement.Choose(placement.Snapshot{Nodes: views}, req)
	for _, p := range decision.Passed {
		last = placement.Errorf(p.Code, "%s", p.Reason)
	}
	for _, cand := range decision.Candidates {
		refusal := a.device(cand.Device).Claim(ctx, c)
		if refusal == nil {
			return nil
		}
		last = refusal
		if refusal.Code != placement.CodeNoCapacity && refusal.Code != placement.CodeNoWarm {
			break // another device would say the same
		}
	}
	return last
}

func (a *Agent) device(id string) *device.Device {
	for _, d := range a.devices {
		if d.ID() == id {
			return d
		}
	}
	return nil
}
