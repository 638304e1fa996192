package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"warmd/agent/internal/device"
	"warmd/agent/internal/gpu"
	"warmd/agent/internal/worker"
	"warmd/agent/runtime"
)

// The loops in internal/device speak through interfaces of their own; here the
// real workers and the real memory are put behind them.

// boundRuntime is a runtime as one device uses it: forks know their device.
type boundRuntime struct {
	*worker.Runtime
	kind string
	env  worker.DeviceEnv
}

var _ device.Runtime = boundRuntime{}

// bind gives a runtime to a device. A CUDA process sees its one device as the
// UUID it is; on a CPU nothing is to be hidden.
func bind(r *worker.Runtime, m runtime.Manifest, d gpu.Device) boundRuntime {
	env := worker.DeviceEnv{Kind: d.Kind, ID: d.ID}
	if d.Kind == gpu.KindCUDA {
		env.Visible = d.ID
	}
	return boundRuntime{Runtime: r, kind: m.Kind, env: env}
}

// Fork parks a pair on the device.
func (b boundRuntime) Fork(ctx context.Context, id string) (device.Worker, error) {
	w, err := b.Runtime.Fork(ctx, worker.ForkSpec{ID: id, Device: b.env})
	if err != nil {
		return nil, err
	}
	return pair{w}, nil
}

// Spawn starts a command cold; a CUDA one sees the one device, too.
func (b boundRuntime) Spawn(ctx context.Context, s device.Spawn) (device.Worker, error) {
	env := s.Env
	if b.env.Visible != "" {
		env = append(slices.Clip(env), "CUDA_VISIBLE_DEVICES="+b.env.Visible)
	}
	w, err := b.Runtime.Spawn(ctx, worker.SpawnSpec{ID: s.ID, Argv: s.Argv, Env: env, Device: b.env.ID, Placement: s.Placement, Attempt: s.Attempt})
	if err != nil {
		return nil, err
	}
	return pair{w}, nil
}

// Status answers from memory.
func (b boundRuntime) Status() device.RuntimeStatus {
	s := b.Runtime.Status()
	return device.RuntimeStatus{Kind: b.kind, Zygote: s.Zygote, Problem: s.Problem}
}

// pair is a worker as the loops see it.
type pair struct{ *worker.Worker }

var _ device.Worker = pair{}

// Load gives the pair its placement.
func (p pair) Load(ctx context.Context, l device.Load) error {
	return p.Worker.Load(ctx, worker.LoadSpec{Placement: l.Placement, Attempt: l.Attempt, Argv: l.Argv, Env: l.Env, Listener: l.Listener})
}

// Record is what Adopt takes.
func (p pair) Record() json.RawMessage {
	b, err := json.Marshal(p.Worker.Record())
	if err != nil {
		return nil // a struct of strings and numbers: it always encodes
	}
	return b
}

// Info is the worker at a glance.
func (p pair) Info() device.Info { return infoOf(p.Worker.Info()) }

// infoOf takes the pids from the record: they are there from the first moment of
// an adoption.
func infoOf(i worker.Info) device.Info {
	return device.Info{
		ID: i.ID, Runtime: i.Runtime, Generation: i.Generation,
		EnginePID: cmp.Or(i.EnginePID, i.Engine.PID), APIPID: cmp.Or(i.APIPID, i.API.PID),
		State: string(i.State), Placement: i.Placement, Attempt: i.Attempt, LogPath: i.LogPath,
	}
}

// memory is one device's memory.
type memory struct {
	inv gpu.Inventory
	id  string
}

var _ device.Memory = memory{}

// Free measures.
func (m memory) Free() (free, total int64, err error) {
	got, err := m.inv.Memory(m.id)
	return got.Free, got.Total, err
}

// PIDs lists who holds memory.
func (m memory) PIDs() ([]int, error) {
	ps, err := m.inv.Processes(m.id)
	if err != nil {
		return nil, err
	}
	out := make([]int, 0, len(ps))
	for _, p := range ps {
		out = append(out, p.PID)
	}
	return out, nil
}

// runtimes are the node's runtimes by name.
type runtimes map[string]*nodeRuntime

type nodeRuntime struct {
	manifest runtime.Manifest
	*worker.Runtime
}

// shutdown ends every engine of every runtime.
func (rs runtimes) shutdown(ctx context.Context) error {
	errs := make(chan error, len(rs))
	for name, r := range rs {
		go func() {
			if err := r.Shutdown(ctx); err != nil {
				errs <- fmt.Errorf("end runtime %s: %w", name, err)
				return
			}
			errs <- nil
		}()
	}
	var all error
	for range rs {
		all = errors.Join(all, <-errs)
	}
	return all
}

// shutdownTime bounds the end of all engines in dev mode.
const shutdownTime = 20 * time.Second
