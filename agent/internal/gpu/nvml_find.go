//go:build cgo && linux

package gpu

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/dl"
	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// needed are the functions without which NVML is of no use: one of each line. The
// last two are called by go-nvml on its own account.
var needed = [][]string{
	{"nvmlInit_v2", "nvmlInit"},
	{"nvmlDeviceGetCount_v2", "nvmlDeviceGetCount"},
	{"nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex"},
	{"nvmlDeviceGetUUID"},
	{"nvmlDeviceGetName"},
	{"nvmlDeviceGetMemoryInfo"},
	{"nvmlErrorString"},
	{"nvmlShutdown"},
}

// openNVML looks at the library first: go-nvml itself calls Init before anybody
// can ask it whether there is such a function, and that would end the process.
func openNVML(opt Options) (Inventory, error) {
	path := cmp.Or(opt.LibraryPath, "libnvidia-ml.so.1")
	l := dl.New(path, dl.RTLD_LAZY|dl.RTLD_LOCAL)
	if err := l.Open(); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoLibrary, err)
	}
	err := lookupAll(l.Lookup)
	if e := l.Close(); err == nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("library %s is not NVML or too old: %w", path, err)
	}
	return newInventory(nvml.New(nvml.WithLibraryPath(path)), opt)
}

func lookupAll(lookup func(string) error) error {
	for _, names := range needed {
		var err error
		for _, name := range names {
			if err = lookup(name); err == nil {
				break
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// newInventory finds the devices of an NVML whose library can be loaded.
func newInventory(lib nvml.Interface, opt Options) (*inventory, error) {
	n := &inventory{lib: lib, log: opt.Log, bound: callBound, watch: defaultWatch, problems: map[*unit]problem{}}
	if _, err := ask(newGate(), initBound, func() (struct{}, nvml.Return) { return struct{}{}, lib.Init() }); err != nil {
		return nil, fmt.Errorf("init NVML: %w", err)
	}
	count, err := ask(newGate(), n.bound, lib.DeviceGetCount)
	if err == nil && count == 0 {
		err = errNoGPU
	}
	if err != nil {
		if !errors.Is(err, ErrHung) {
			_ = lib.Shutdown()
		}
		return nil, fmt.Errorf("count GPUs: %w", err)
	}
	for i := range count {
		n.units = append(n.units, n.find(i)...)
	}
	return n, nil
}

// has reports whether the driver has an optional function. Init has succeeded.
func (n *inventory) has(symbol string) bool {
	return n.lib.Extensions().LookupSymbol(symbol) == nil
}

// find describes the GPU of an index, or its slices. A GPU that cannot be
// described is listed all the same, with its problem: it must not vanish silently.
func (n *inventory) find(index int) []*unit {
	gate := newGate()
	u := &unit{Device: Device{ID: fmt.Sprintf("gpu-%d", index), Kind: KindCUDA, Name: "GPU", Index: index}, slice: -1, gate: gate}
	h, err := ask(gate, n.bound, func() (nvml.Device, nvml.Return) { return n.lib.DeviceGetHandleByIndex(index) })
	if err != nil {
		n.fail(u, fmt.Sprintf("open GPU %d: %v", index, err))
		return []*unit{u}
	}
	u.handle, u.parent = h, h
	if err := n.describe(u); err != nil {
		n.fail(u, err.Error())
		return []*unit{u}
	}
	if !n.has("nvmlDeviceGetMigMode") || !n.has("nvmlDeviceGetMaxMigDeviceCount") || !n.has("nvmlDeviceGetMigDeviceHandleByIndex") {
		return []*unit{u}
	}
	mode, err := ask(gate, n.bound, func() (int, nvml.Return) { current, _, ret := h.GetMigMode(); return current, ret })
	if err != nil || mode != nvml.DEVICE_MIG_ENABLE {
		return []*unit{u} // a GPU without MIG says "not supported"
	}
	slices := n.slices(u)
	if len(slices) == 0 {
		n.fail(u, "MIG is on and there is no slice: make some (nvidia-smi mig -cgi ... -C) or turn MIG off, then restart the agent")
		return []*unit{u}
	}
	return slices
}

// slices finds the MIG devices of a GPU. Their indexes have holes.
func (n *inventory) slices(g *unit) []*unit {
	count, err := ask(g.gate, n.bound, g.handle.GetMaxMigDeviceCount)
	if err != nil {
		n.log.Warn("count MIG slices", "device", g.ID, "err", err)
		return nil
	}
	var out []*unit
	for i := range count {
		h, err := ask(g.gate, n.bound, func() (nvml.Device, nvml.Return) { return g.handle.GetMigDeviceHandleByIndex(i) })
		if err != nil {
			continue
		}
		u := &unit{
			Device: Device{ID: fmt.Sprintf("%s/mig-%d", g.ID, i), Kind: KindCUDA, Name: g.Name, Index: g.Index, Parent: g.ID},
			handle: h, parent: g.handle, slice: -1, gate: newGate(),
		}
		if n.has("nvmlDeviceGetGpuInstanceId") {
			if id, err := ask(u.gate, n.bound, h.GetGpuInstanceId); err == nil {
				u.slice = id
			}
		}
		if err := n.describe(u); err != nil {
			n.fail(u, err.Error())
		}
		out = append(out, u)
	}
	return out
}

// describe fills id, name and memory of a unit.
func (n *inventory) describe(u *unit) error {
	id, err := ask(u.gate, n.bound, u.handle.GetUUID)
	if err != nil {
		return fmt.Errorf("read UUID of GPU %d: %w", u.Index, err)
	}
	u.ID = id
	if name, err := ask(u.gate, n.bound, u.handle.GetName); err == nil && name != "" {
		u.Name = name
	}
	m, err := ask(u.gate, n.bound, u.handle.GetMemoryInfo)
	if errors.Is(err, nvml.ERROR_NOT_SUPPORTED) {
		u.unified, err = openCPU("/", "")
		if err == nil {
			u.TotalBytes = u.unified.device.TotalBytes
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("read memory of %s: %w", id, err)
	}
	u.TotalBytes = int64(m.Total)
	return nil
}
