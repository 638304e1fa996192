package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"warmd/agent/internal/device"
	"warmd/agent/internal/worker"
	"warmd/placement"
)

// relic is a living worker of an earlier agent.
type relic struct {
	rec    worker.Record
	worker device.Worker // nil: it lives and cannot be reached
	err    error
}

// adopt gives the loops what is there, by the table of the package comment. It has no
// deadline: every question in it is bounded by itself, and its answer can be done
// without. An agent that did not get to run for seconds must not conclude that its
// workers are gone. Nothing is decided when ctx ends.
func (a *Agent) adopt(ctx context.Context) error {
	begin := time.Now()
	found, err := a.relics(ctx)
	if err != nil {
		return fmt.Errorf("adopt workers: %w", err)
	}
	used := map[string]bool{}
	for _, r := range a.journal.placements() {
		e := a.book.Restore(r)
		if r.Placement.State.Terminal() {
			continue
		}
		f := relicOf(found, r.Placement)
		if f != nil {
			used[f.rec.ID] = true
		}
		a.adoptPlacement(ctx, e, r, f)
	}
	parked := a.journal.parked()
	for id, f := range found {
		if !used[id] {
			a.adoptIdle(f, parked)
		}
	}
	for id := range parked {
		if found[id] == nil {
			a.journal.Unpark(id)
		}
	}
	if len(found) > 0 {
		a.log.Info("workers of an earlier agent found", "workers", len(found), "took", time.Since(begin))
	}
	return nil
}

// relics finds every living worker: what the runtimes know, and what the journal
// says besides.
func (a *Agent) relics(ctx context.Context) (map[string]*relic, error) {
	recs := map[string]worker.Record{}
	for _, raw := range a.journal.workerRecords() {
		var rec worker.Record
		if json.Unmarshal(raw, &rec) == nil && rec.ID != "" && living(rec) {
			recs[rec.ID] = rec
		}
	}
	for _, r := range a.runtimes {
		have, err := r.Found(ctx)
		if err != nil {
			return nil, err
		}
		for _, rec := range have {
			recs[rec.ID] = rec
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[string]*relic{}
	room := make(chan struct{}, 16)
	for id, rec := range recs {
		wg.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			f := a.reach(ctx, rec)
			if errors.Is(f.err, worker.ErrLost) {
				a.log.Warn("worker was lost while no agent ran", "worker", id, "err", f.err)
				return
			}
			mu.Lock()
			out[id] = f
			mu.Unlock()
		})
	}
	wg.Wait()
	return out, ctx.Err()
}

func (a *Agent) reach(ctx context.Context, rec worker.Record) *relic {
	r := a.runtimes[rec.Runtime]
	if r == nil {
		return &relic{rec: rec, err: fmt.Errorf("its runtime %s is not installed any more", rec.Runtime)}
	}
	w, err := r.Adopt(ctx, rec)
	if err != nil {
		return &relic{rec: rec, err: err}
	}
	return &relic{rec: w.Record(), worker: pair{w}}
}

func living(rec worker.Record) bool {
	return rec.Engine.PID > 0 && rec.Engine.Alive() || rec.API.PID > 0 && rec.API.Alive()
}

// relicOf finds a placement's worker: by the worker's id, or, when the agent died
// before it wrote that down, by the worker's word.
func relicOf(found map[string]*relic, p placement.Placement) *relic {
	if f := found[p.Worker]; f != nil {
		return f
	}
	for _, f := range found {
		if f.rec.Placement == p.ID {
			return f
		}
	}
	return nil
}

// adoptPlacement takes a placement that is not over.
func (a *Agent) adoptPlacement(ctx context.Context, e *device.Entry, r device.Record, f *relic) {
	var problem error
	var w device.Worker
	switch {
	case f == nil:
	case f.rec.Placement != "" && f.rec.Placement != r.Placement.ID:
		problem = fmt.Errorf("its worker %s says that it has placement %s", f.rec.ID, f.rec.Placement)
		a.quarantine(f, "journal and worker disagree: the journal gives it placement "+r.Placement.ID+", it says "+f.rec.Placement)
	case f.worker == nil:
		problem = fmt.Errorf("its worker %s runs and cannot be reached: %w", f.rec.ID, f.err)
		a.quarantine(f, f.err.Error())
	default:
		w = f.worker
	}
	d := a.device(r.Placement.Device)
	if d == nil {
		problem = fmt.Errorf("device %s is not there any more", r.Placement.Device)
		if w != nil {
			a.quarantine(f, problem.Error())
			w = nil
		}
		d = a.devices[0]
	}
	c := device.Claim{Entry: e, Runtime: r.Placement.Runtime, Deadline: r.Deadline}
	err := a.resume(ctx, &c, r, w)
	if problem == nil {
		problem = err
	}
	d.AdoptPlacement(c, w, problem)
}

// resume makes the claim of an earlier agent whole again.
func (a *Agent) resume(ctx context.Context, c *device.Claim, r device.Record, w device.Worker) error {
	port, err := portOf(r.Placement.Endpoint)
	if err != nil {
		return err
	}
	given := w != nil && w.Info().Placement == r.Placement.ID
	cold := w != nil && r.Placement.Tier == placement.TierCold
	if r.Placement.State == placement.Ready || r.Ending != "" || cold || (given && w.Info().State == string(worker.Serving)) {
		c.Endpoint = a.ports.Hold(port)
		return nil
	}
	// The socket is ours to make again, on the same port: a client knows it. Unless
	// the worker has it already: then it listens, and cannot be bound twice.
	if c.Endpoint, err = a.ports.Bind(port); err != nil && given {
		c.Endpoint = a.ports.Hold(port)
		return nil
	}
	if err != nil {
		return fmt.Errorf("the agent was restarted, and the endpoint's port is taken now: %w", err)
	}
	if a.runtimes[r.Placement.Runtime] == nil {
		return fmt.Errorf("runtime %s is not installed any more", r.Placement.Runtime)
	}
	c.Start, err = a.prepare(ctx, r.Placement.Runtime, r.Placement.Request, port)
	return err
}

func portOf(endpoint string) (int, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return 0, fmt.Errorf("read endpoint %q: %w", endpoint, err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return 0, fmt.Errorf("read endpoint %q: it has no port", endpoint)
	}
	return port, nil
}

// adoptIdle takes a worker that no placement of ours has. An idle one explains
// itself, whatever the journal knows; anything else is quarantined.
func (a *Agent) adoptIdle(f *relic, parked map[string]device.ParkedRecord) {
	_, ours := parked[f.rec.ID]
	switch {
	case f.worker == nil:
		a.quarantine(f, "it runs and cannot be reached: "+f.err.Error())
	case f.rec.Placement != "":
		a.quarantine(f, "it has placement "+f.rec.Placement+", which this agent does not know")
	case f.rec.State == worker.Warm, f.rec.State == worker.Draining && ours:
		d := a.deviceOf(f.rec.ID, parked)
		if !ours {
			a.journal.Park(device.ParkedRecord{Worker: f.rec.ID, Device: d.ID(), Runtime: f.rec.Runtime, Record: f.worker.Record()})
		}
		d.AdoptParked(f.rec.Runtime, f.worker, f.rec.State == worker.Draining)
	case f.rec.State == worker.Spawning, f.rec.State == worker.Loading: // Adopt's word for one that has not answered
		a.deviceOf(f.rec.ID, parked).AdoptParked(f.rec.Runtime, f.worker, true)
	default:
		a.quarantine(f, "it is "+string(f.rec.State)+", and this agent does not know what for")
	}
}

func (a *Agent) quarantine(f *relic, why string) {
	info := device.Info{
		ID: f.rec.ID, Runtime: f.rec.Runtime, Generation: f.rec.Generation, EnginePID: f.rec.Engine.PID, APIPID: f.rec.API.PID,
		State: string(f.rec.State), Placement: f.rec.Placement, Attempt: f.rec.Attempt, LogPath: f.rec.Log,
	}
	d := a.deviceOf(f.rec.ID, a.journal.parked())
	a.log.Error("worker quarantined: it keeps its slot until it is gone", "worker", f.rec.ID, "device", d.ID(), "why", why)
	a.events.add(placement.Event{
		At: time.Now(), Node: a.cfg.Node, Device: d.ID(), Kind: "worker.quarantined", Worker: f.rec.ID, Message: why,
	})
	d.AdoptStranger(info, why, f.worker, func() bool { return living(f.rec) })
}

// deviceOf says where a worker is: by the journal, by the placement that had it,
// by its id, or, if nothing else is known, the first device.
func (a *Agent) deviceOf(id string, parked map[string]device.ParkedRecord) *device.Device {
	if p, ok := parked[id]; ok {
		if d := a.device(p.Device); d != nil {
			return d
		}
	}
	index, _, _ := strings.Cut(strings.TrimPrefix(id, "w"), "-")
	if i, err := strconv.Atoi(index); err == nil && i >= 0 && i < len(a.devices) {
		return a.devices[i]
	}
	return a.devices[0]
}
