package bench

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
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
		p, err := place(ctx, c, r, "assigned")
		if err != nil {
			return Started{}, err
		}
		return underWay(ctx, c, p), nil
	}}
}

// place claims under an id of its own. What is not seen through, because it failed or
// somebody interrupted the bench, is ended: nobody would use it, and it holds a slot.
func place(ctx context.Context, c *coordapi.Client, r placement.Request, wait string) (placement.Placement, error) {
	r.ID = "bench-" + strings.ToLower(rand.Text()[:12])
	p, err := c.Place(ctx, r, wait, nil)
	if err != nil {
		err = errors.Join(err, drop(ctx, c, r.ID))
	}
	return p, err
}

// drop ends a placement, if there is one, also when ctx is over.
func drop(ctx context.Context, c *coordapi.Client, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	if _, err := c.Release(ctx, id, 0); err != nil && placement.AsError(err).Code != placement.CodeNotFound {
		return fmt.Errorf("release %s: %w", id, err)
	}
	return nil
}

// underWay is a placement as a start that others watch.
func underWay(ctx context.Context, c *coordapi.Client, p placement.Placement) Started {
	return Started{
		URL:    p.Endpoint,
		Watch:  func(ctx context.Context) error { return failed(ctx, c, p.ID) },
		Trace:  func(ctx context.Context) placement.Trace { return traceOf(ctx, c, p.ID) },
		Config: func(ctx context.Context) string { return configOf(ctx, c, p.ID) },
		End: func() error {
			if err := drop(ctx, c, p.ID); err != nil {
				return err
			}
			return Parked(ctx, c, p.Runtime)
		},
	}
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

// Asleep is an arm that wakes a model. What it wakes is placed, asked and put to sleep
// before the clock runs, for every run anew: it holds the slot that the other arms need.
func Asleep(c *coordapi.Client, name string, r placement.Request) Arm {
	arm := Placed(c, name, r)
	var before Started
	var id string
	arm.Ready = func(ctx context.Context) (func() error, error) {
		p, err := place(ctx, c, r, "ready")
		if err != nil {
			return nil, err
		}
		id, before = p.ID, underWay(ctx, c, p)
		if _, err = before.ask(ctx, r.Name); err == nil {
			_, err = c.Sleep(ctx, id, 0)
		}
		return before.End, err
	}
	arm.Start = func(ctx context.Context) (Started, error) {
		_, err := c.Wake(ctx, id)
		return before, err
	}
	return arm
}

// CanSleep refuses what cannot be measured before anything is started.
func CanSleep(rt Runtime, args []string) error {
	if rt.Device != "cuda" {
		return placement.Errorf(placement.CodeUnsupported, "the arm sleeping cannot be measured: runtime %s is for %s, and vLLM's sleep mode needs a GPU", rt.Name, cmp.Or(rt.Device, "cpu")).
			WithHint("leave it out of --arms: vllm, cold and warm can be measured")
	}
	if !slices.Contains(args, "--enable-sleep-mode") {
		return placement.Errorf(placement.CodeBadRequest, "the arm sleeping needs an engine that can sleep").
			WithHint("give every arm the flag: --arg=--enable-sleep-mode")
	}
	return nil
}
