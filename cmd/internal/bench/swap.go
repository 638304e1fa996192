package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// Swap is one model that took another's place, on one clock: the release of the old
// one is sent, its slot is free and its memory proven so, the new one's first token
// comes.
type Swap struct {
	N    int    `json:"n"`
	From string `json:"from"`
	To   string `json:"to"`
	Tier string `json:"tier"`
	// Seconds is the whole: Release until the answer that the slot is free, Accept until
	// a node took the next one, Token from there to its first token.
	Seconds float64 `json:"seconds"`
	Release float64 `json:"release_seconds"`
	Accept  float64 `json:"accept_seconds"`
	Token   float64 `json:"token_seconds"`
	// Forked is how long the start waited for a worker that was not parked yet.
	Forked float64 `json:"forked_seconds"`
	Load1  float64 `json:"load1"`
}

// Swaps is a script of placements and releases.
type Swaps struct {
	Coordinator *coordapi.Client
	Agent       *agentapi.Client // of this host
	Models      []string
	Request     placement.Request // what all have in common
	Swaps       int
	Patience    time.Duration // with what is cleaned up late; default 15 s
	Report      func(Swap)
}

// Run swaps the models round and round. Every model is placed once before anything is
// counted, and what the agent and its zygotes are made of is compared from there: what
// happens only once is no leak.
func (s Swaps) Run(ctx context.Context) (*SwapReport, error) {
	node, err := s.Agent.Node(ctx)
	if err != nil {
		return nil, err
	}
	if err := here(node); err != nil {
		return nil, err
	}
	s.Request.Node = node.Capacity.Node
	rep := &SwapReport{Models: s.Models, Runtime: s.Request.Runtime, Args: s.Request.Args, Node: node.Capacity.Node, Begun: time.Now(), Host: ThisHost(), Swaps: []Swap{}, Warnings: []string{}}
	w := &watch{agent: s.Agent, sessions: map[int]bool{}, patience: cmp.Or(s.Patience, 15*time.Second)}
	texts := map[string]string{}
	for _, m := range s.Models {
		id, _, err := s.place(ctx, w, texts, m)
		if err != nil {
			return nil, err
		}
		if _, err := s.release(ctx, id); err != nil {
			return nil, err
		}
	}
	if err := Parked(ctx, s.Coordinator, s.Request.Runtime); err != nil {
		return nil, err
	}
	if rep.Before, err = w.settled(ctx, nil); err != nil {
		return nil, err
	}
	if err := s.round(ctx, w, texts, rep); err != nil {
		return nil, err
	}
	if err := Parked(ctx, s.Coordinator, s.Request.Runtime); err != nil {
		return nil, err
	}
	if rep.After, err = w.settled(ctx, &rep.Before); err != nil {
		return nil, err
	}
	rep.finish()
	return rep, nil
}

// round is what is counted.
func (s Swaps) round(ctx context.Context, w *watch, texts map[string]string, rep *SwapReport) (err error) {
	from := s.Models[0]
	id, _, err := s.place(ctx, w, texts, from)
	if err != nil {
		return err
	}
	for n := 1; n <= s.Swaps; n++ {
		to := s.Models[n%len(s.Models)]
		begin, load := time.Now(), Load1()
		freed, err := s.release(ctx, id)
		if err != nil {
			return err
		}
		var got placed
		if id, got, err = s.place(ctx, w, texts, to); err != nil {
			return fmt.Errorf("swap %d: %w", n, err)
		}
		sw := Swap{
			N: n, From: filepath.Base(from), To: filepath.Base(to), Tier: string(got.tier), Seconds: got.token.Sub(begin).Seconds(), Release: freed.Sub(begin).Seconds(),
			Accept: got.accepted.Sub(freed).Seconds(), Token: got.token.Sub(got.accepted).Seconds(), Forked: got.forked, Load1: load,
		}
		rep.Swaps = append(rep.Swaps, sw)
		s.Report(sw)
		from = to
	}
	_, err = s.release(ctx, id)
	return err
}

// placed is one placement with its first token.
type placed struct {
	accepted, token time.Time
	tier            placement.Tier
	forked          float64
}

func (s Swaps) place(ctx context.Context, w *watch, texts map[string]string, model string) (_ string, _ placed, err error) {
	r := s.Request
	r.Model, r.Name = model, filepath.Base(model)
	r.WaitCapacity = true // the coordinator may hear of the free slot a moment after we do, and that moment counts
	p, err := place(ctx, s.Coordinator, r, "assigned")
	if err != nil {
		return "", placed{}, fmt.Errorf("place %s: %w", r.Name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, drop(ctx, s.Coordinator, p.ID))
		}
	}()
	got := placed{accepted: time.Now()}
	a, err := Started{URL: p.Endpoint, Watch: func(ctx context.Context) error { return failed(ctx, s.Coordinator, p.ID) }}.ask(ctx, r.Name)
	if err != nil {
		return "", got, fmt.Errorf("place %s: %w", r.Name, err)
	}
	got.token = a.token
	if was, ok := texts[model]; ok && was != a.text {
		return "", got, fmt.Errorf("place %s: it answers %q, and answered %q before", r.Name, a.text, was)
	}
	texts[model] = a.text
	// Not on the clock: who serves it, and what came of the pool.
	if err := w.see(ctx); err != nil {
		return "", got, err
	}
	now, err := s.Coordinator.Placement(ctx, p.ID)
	if err != nil {
		return "", got, fmt.Errorf("look at %s: %w", r.Name, err)
	}
	got.tier = now.Tier
	if t, err := s.Coordinator.Trace(ctx, p.ID); err == nil {
		got.forked = forked(t)
	}
	return p.ID, got, nil
}

// release returns the moment at which the slot is free: the agent answers when every
// process is gone and the device's memory is proven to be back.
func (s Swaps) release(ctx context.Context, id string) (time.Time, error) {
	p, err := s.Coordinator.Release(ctx, id, 0)
	at := time.Now()
	if err != nil {
		return at, errors.Join(fmt.Errorf("release %s: %w", id, err), drop(ctx, s.Coordinator, id))
	}
	if p.State != placement.Released {
		return at, fmt.Errorf("release %s: it is %s: %s", id, p.State, p.Reason)
	}
	return at, nil
}

// forked is how long a start waited for the fork of its worker.
func forked(t placement.Trace) float64 {
	var waited []placement.Phase
	for _, p := range t.Phases {
		if p.Name == phaseFork && !p.Before {
			waited = append(waited, p)
		}
	}
	return placement.Covered(waited)
}
