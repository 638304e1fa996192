//go:build cgo && linux

package gpu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// inventory is the devices that NVML reports.
type inventory struct {
	lib   nvml.Interface
	log   *slog.Logger
	units []*unit
	bound time.Duration // of one call
	watch watchTimes

	mu       sync.Mutex
	problems map[*unit]problem
	closed   bool
}

// unit is one device: a GPU, or a MIG slice of one.
type unit struct {
	Device
	handle nvml.Device
	parent nvml.Device // the GPU that the driver reports events for
	slice  int         // GPU instance id of a MIG slice, -1 for a whole GPU
	// unified means that the GPU has no memory of its own but the host's.
	unified *cpu
	gate    chan struct{} // holds one token while a call is in the driver
}

// problem is why a unit takes nothing. An Xid stays until the agent restarts; a
// device that is down is well again as soon as it answers.
type problem struct{ xid, down string }

var _ Inventory = (*inventory)(nil)

func (n *inventory) Devices() ([]Device, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]Device, len(n.units))
	for i, u := range n.units {
		out[i] = u.Device
		p := n.problems[u]
		out[i].Problem = cmp.Or(p.xid, p.down)
	}
	return out, nil
}

func (n *inventory) Memory(id string) (Memory, error) {
	u, err := n.unit(id)
	if err != nil {
		return Memory{}, fmt.Errorf("measure memory of %s: %w", id, err)
	}
	return n.measure(u)
}

// measure asks the driver, and notes what the answer says about the device.
func (n *inventory) measure(u *unit) (Memory, error) {
	if u.unified != nil {
		return u.unified.measure()
	}
	m, err := ask(u.gate, n.bound, u.handle.GetMemoryInfo)
	if err != nil {
		err = fmt.Errorf("measure memory of %s: %w", u.ID, err)
		n.fail(u, err.Error())
		return Memory{}, err
	}
	n.fail(u, "")
	return Memory{Free: int64(min(m.Free, m.Total)), Total: int64(m.Total)}, nil
}

func (n *inventory) Processes(id string) ([]Process, error) {
	u, err := n.unit(id)
	if err != nil {
		return nil, fmt.Errorf("list processes of %s: %w", id, err)
	}
	if !n.has("nvmlDeviceGetComputeRunningProcesses_v3") && !n.has("nvmlDeviceGetComputeRunningProcesses_v2") && !n.has("nvmlDeviceGetComputeRunningProcesses") {
		return nil, fmt.Errorf("list processes of %s: %w", id, errors.New("this driver cannot: update it"))
	}
	infos, err := ask(u.gate, n.bound, u.handle.GetComputeRunningProcesses)
	if err != nil {
		return nil, fmt.Errorf("list processes of %s: %w", id, err)
	}
	out := make([]Process, len(infos))
	for i, p := range infos {
		out[i] = Process{PID: int(p.Pid), Bytes: int64(p.UsedGpuMemory)} // "not available" is all ones: -1
	}
	return out, nil
}

// unit finds a device that can be asked. After Close none can: the next call
// would end the process.
func (n *inventory) unit(id string) (*unit, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, errors.New("inventory is closed")
	}
	for _, u := range n.units {
		if u.ID == id {
			if u.handle == nil {
				return nil, errors.New(n.problems[u].down)
			}
			return u, nil
		}
	}
	return nil, ErrUnknownDevice
}

// fail notes that a unit is down, or well again when why is empty.
func (n *inventory) fail(u *unit, why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.problems[u]
	if p.down != why {
		n.log.Log(context.Background(), level(why), "device changed", "device", u.ID, "problem", why)
	}
	p.down = why
	n.problems[u] = p
}

func level(problem string) slog.Level {
	if problem == "" {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// Close shuts NVML down, unless a call still hangs in the driver: then shutting
// down would hang, too, and the end of the process does it anyway.
func (n *inventory) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	n.mu.Unlock()
	for _, u := range n.units {
		if len(u.gate) > 0 {
			return fmt.Errorf("close NVML: a call about %s: %w", u.ID, ErrHung)
		}
	}
	if _, err := ask(newGate(), n.bound, func() (struct{}, nvml.Return) { return struct{}{}, n.lib.Shutdown() }); err != nil {
		return fmt.Errorf("close NVML: %w", err)
	}
	return nil
}
