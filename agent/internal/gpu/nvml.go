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

	"github.com/NVIDIA/go-nvml/pkg/dl"
	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// The bounds of calls into the driver. A healthy one answers in microseconds, the
// first Init on a host without the persistence daemon takes seconds.
const (
	initBound = 30 * time.Second
	callBound = 3 * time.Second
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
			lib.Shutdown()
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

func newGate() chan struct{} { return make(chan struct{}, 1) }

// ask makes one call into the driver, within a bound. The gate lets one call in at
// a time, so a driver that hangs holds one goroutine and no more.
func ask[T any](gate chan struct{}, bound time.Duration, call func() (T, nvml.Return)) (T, error) {
	type answer struct {
		value T
		ret   nvml.Return
	}
	var zero T
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case gate <- struct{}{}:
	case <-timer.C:
		return zero, ErrHung
	}
	done := make(chan answer, 1)
	go func() {
		v, ret := call()
		<-gate // before the answer: Close takes a full gate for a hung call
		done <- answer{v, ret}
	}()
	select {
	case a := <-done:
		return a.value, failure(a.ret)
	case <-timer.C:
		return zero, ErrHung
	}
}

// failure turns NVML's return value into an error that can be branched on.
func failure(ret nvml.Return) error {
	switch ret {
	case nvml.SUCCESS:
		return nil
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_GPU_NOT_FOUND:
		return fmt.Errorf("%w (%w)", ErrLost, ret)
	case nvml.ERROR_RESET_REQUIRED:
		return fmt.Errorf("GPU needs a reset: %w", ret)
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return fmt.Errorf("driver and library differ, as after an upgrade: reboot the host or reload the driver: %w", ret)
	}
	return ret
}
