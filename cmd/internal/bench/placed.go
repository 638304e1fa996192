package bench

import (
	"bufio"
	"context"
	"fmt"
	"time"

	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// releaseTime bounds a release and the refill that follows it.
const releaseTime = time.Minute

// Placed is an arm that places through the coordinator. The client asks the endpoint
// as soon as the agent accepted: the agent listens from then on, and the request waits
// there.
func Placed(c *coordapi.Client, name string, r placement.Request) Arm {
	return Arm{Name: name, Start: func(ctx context.Context) (Started, error) {
		r.ID = ""
		p, err := c.Place(ctx, r, "assigned", nil)
		if err != nil {
			return Started{}, err
		}
		return Started{
			URL:    p.Endpoint,
			Watch:  func(ctx context.Context) error { return failed(ctx, c, p.ID) },
			Trace:  func(ctx context.Context) placement.Trace { return traceOf(ctx, c, p.ID) },
			Config: func(ctx context.Context) string { return configOf(ctx, c, p.ID) },
			End: func() error {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
				defer cancel()
				if _, err := c.Release(ctx, p.ID, 0); err != nil {
					return fmt.Errorf("release %s: %w", p.ID, err)
				}
				return Parked(ctx, c, p.Runtime)
			},
		}, nil
	}}
}

// failed waits until a placement is over.
func failed(ctx context.Context, c *coordapi.Client, id string) error {
	for pause(ctx, 500*time.Millisecond) {
		if p, err := c.Placement(ctx, id); err == nil && p.State.Terminal() {
			return placement.Errorf(placement.CodeStartFailed, "placement %s is %s: %s", id, p.State, p.Reason).WithHint("warmctl logs %s", id)
		}
	}
	return nil
}

// traceOf waits until the agent has every span of the start.
func traceOf(ctx context.Context, c *coordapi.Client, id string) placement.Trace {
	ctx, cancel := context.WithTimeout(ctx, spanTime)
	defer cancel()
	var last placement.Trace
	for {
		t, err := c.Trace(ctx, id)
		if err == nil {
			last = t
		}
		if whole(last) || !pause(ctx, 50*time.Millisecond) {
			return last
		}
	}
}

func configOf(ctx context.Context, c *coordapi.Client, id string) string {
	body, err := c.Logs(ctx, id, 1000, false)
	if err != nil {
		return ""
	}
	defer body.Close()
	return config(bufio.NewScanner(body))
}

// Parked waits until a worker of the runtime is idle, so that every start finds the
// pool as the others did. A runtime that parks none is not waited for.
func Parked(ctx context.Context, c *coordapi.Client, runtime string) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	for {
		f, err := c.Fleet(ctx)
		if err != nil {
			return fmt.Errorf("wait for a warm worker: %w", err)
		}
		parks := false
		for _, n := range f.Nodes {
			for _, d := range n.Devices {
				if d.Warm[runtime] > 0 {
					return nil
				}
			}
			for _, r := range n.Runtimes {
				parks = parks || r.Name == runtime && r.Kind != "exec"
			}
		}
		if !parks && len(f.Nodes) > 0 {
			return nil
		}
		if !pause(ctx, 50*time.Millisecond) {
			return fmt.Errorf("wait for a warm worker of %s: %w", runtime, ctx.Err())
		}
	}
}

// NoSleep is why there is no arm "sleeping" yet. It is the one place to change when
// there is: that arm is a Placed whose Start wakes a placement instead.
func NoSleep() error {
	return placement.Errorf(placement.CodeBadRequest, "the arm sleeping cannot be measured: it needs a GPU, and a runtime whose engines sleep. The workers of this warmd answer sleep and wake with `unsupported`").
		WithHint("leave it out of --arms: vllm, cold and warm can be measured")
}
