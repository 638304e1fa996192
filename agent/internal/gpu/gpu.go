// Package gpu says which devices a host has, how much of their memory is free
// right now, which processes hold it, and what goes wrong with them. It is the
// only package that knows NVML.
//
// A device is one GPU (named by its NVML UUID), one MIG slice when MIG is on, or
// "cpu-0" on a host without GPUs. [Open] chooses: NVML when its library loads and
// reports at least one GPU, else cpu-0. Without cgo there is no NVML, only cpu-0.
//
// Three things about NVML shape the code:
//
//   - A call before a successful Init, or to a function that the installed driver
//     lacks, ends the process ("symbol lookup error", exit 127): nothing recovers
//     it. So every function that we use is looked up before its first call, and a
//     missing optional one only takes its feature away.
//   - A sick driver does not return from calls. Each one runs under a bound: the
//     caller gets an error that says so, at most one goroutine per device stays
//     behind, and the device carries a Problem.
//   - A lost GPU makes the event wait fail at once, for ever. [Inventory.Watch]
//     reports it once and waits longer and longer between tries.
//
// Reading order: gpu.go, xid.go, cpu.go, nvml.go, nvml_find.go, nvml_call.go,
// nvml_watch.go.
package gpu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
)

// The kinds of device.
const (
	KindCUDA = "cuda"
	KindCPU  = "cpu"
)

// CPUDevice is the id of the one device of a host without GPUs.
const CPUDevice = "cpu-0"

// Device is one device as it was found when the inventory was opened; only
// Problem changes afterwards.
type Device struct {
	ID   string // NVML UUID ("GPU-...", "MIG-..."), or cpu-0
	Kind string // cuda, cpu
	Name string
	// Index is NVML's index of the GPU (of the parent GPU for a MIG slice).
	Index      int
	TotalBytes int64
	// Parent is the UUID of the GPU that a MIG slice is a part of.
	Parent string
	// Problem says why the device takes nothing, in words; empty when it is well.
	Problem string
}

// Memory is a measurement, never a memory of one. Invariant: 0 <= Free <= Total.
type Memory struct {
	Free, Total int64
}

// Process holds memory of a device. Bytes is -1 when the driver does not say.
type Process struct {
	PID   int
	Bytes int64
}

// Fault is something that went wrong with a device, or the end of it: what holds
// now is the device's Problem.
//
// Invariant: Fatal implies that the device carries a Problem: after an Xid until
// the agent restarts, otherwise until the device answers again.
type Fault struct {
	// Device is empty when the driver does not say whose fault it is.
	Device string
	// Xid is the driver's error number, 0 when the fault is not an Xid.
	Xid int
	// Fatal means that the device must not be used; otherwise the fault is that of
	// the program which ran on it, and the device is fine for the next one.
	Fatal   bool
	Message string
}

// Inventory is the devices of one host. All methods may be called at once.
type Inventory interface {
	// Devices lists them in a fixed order, the unwell ones with their Problem.
	Devices() ([]Device, error)
	// Memory measures a device now.
	Memory(id string) (Memory, error)
	// Processes lists who holds memory of a device now (host pids).
	Processes(id string) ([]Process, error)
	// Watch calls report for each fault, from one goroutine, until ctx ends; it
	// returns nil then. It also says when a lost device is found without any event.
	Watch(ctx context.Context, report func(Fault)) error
	// Close ends what Open began. Watch must have returned.
	Close() error
}

// Options of Open.
type Options struct {
	// LibraryPath is the NVML library; empty means libnvidia-ml.so.1 where the
	// dynamic linker finds it.
	LibraryPath string
	// CPU asks for cpu-0 even where there are GPUs.
	CPU bool
	// NVML asks for an error instead of cpu-0 where NVML cannot be had.
	NVML bool
	// Cgroup is the control group whose memory limit bounds cpu-0, as a path below
	// the cgroup mount ("/warmd.slice"). Empty means the agent's own, which is right
	// when engines run in the agent's group and wrong when they have their own slice.
	Cgroup string
	Log    *slog.Logger
}

// Errors to branch on.
var (
	// ErrUnknownDevice is for an id that Devices does not list.
	ErrUnknownDevice = errors.New("unknown device")
	// ErrLost is in the chain when the driver says that the GPU is gone.
	ErrLost = errors.New("GPU is lost: reset it or reboot the host, then restart the agent")
	// ErrHung is in the chain when the driver did not return from a call in time.
	ErrHung = errors.New("NVIDIA driver does not answer")

	errNoLibrary = errors.New("no NVML library")
	errNoGPU     = errors.New("NVML reports no GPU")
	errNoCgo     = errors.New("this binary was built without cgo and cannot use GPUs: build it with CGO_ENABLED=1")
)

// Open finds the host's devices. It starts nothing.
func Open(opt Options) (Inventory, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if !opt.CPU {
		inv, err := openNVML(opt)
		switch {
		case err == nil:
			return inv, nil
		case opt.NVML:
			return nil, fmt.Errorf("open NVML: %w", err)
		case expected(err):
			opt.Log.Info("no GPU here, the device is cpu-0", "reason", err)
		default:
			// A GPU may well be there: say it loudly, a CPU node is not what was bought.
			opt.Log.Warn("NVML cannot be used, the device is cpu-0", "reason", err)
		}
	}
	return openCPU("/", opt.Cgroup)
}

// expected reports whether err is what an ordinary host without GPUs gives.
func expected(err error) bool {
	if errors.Is(err, errNoGPU) {
		return true
	}
	_, node := os.Stat("/dev/nvidiactl") // made by the driver
	return node != nil && (errors.Is(err, errNoLibrary) || errors.Is(err, errNoCgo))
}
