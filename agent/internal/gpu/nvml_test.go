//go:build cgo && linux

package gpu

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// dgx is NVIDIA's mock of a DGX H200 with the functions that it leaves out.
type dgx struct {
	*server.Server
	events chan nvml.EventData

	mu     sync.Mutex
	broken nvml.Return // what a wait for events returns at once, if not success
	waits  int
}

func newDGX() *dgx {
	d := &dgx{Server: dgxh200.New(), events: make(chan nvml.EventData)}
	for _, x := range d.Devices {
		dev := x.(*server.Device)
		dev.MemoryInfo.Free = dev.MemoryInfo.Total - 1<<30
		dev.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
			return []nvml.ProcessInfo{{Pid: uint32(100 + dev.Index), UsedGpuMemory: 1 << 30}}, nvml.SUCCESS
		}
		dev.RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return nvml.SUCCESS }
	}
	d.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
		return &mock.EventSet{
			FreeFunc: func() nvml.Return { return nvml.SUCCESS },
			WaitFunc: func(ms uint32) (nvml.EventData, nvml.Return) {
				d.mu.Lock()
				d.waits++
				broken := d.broken
				d.mu.Unlock()
				if broken != nvml.SUCCESS {
					return nvml.EventData{}, broken
				}
				select {
				case e := <-d.events:
					return e, nvml.SUCCESS
				case <-time.After(time.Duration(ms) * time.Millisecond):
					return nvml.EventData{}, nvml.ERROR_TIMEOUT
				}
			},
		}, nvml.SUCCESS
	}
	return d
}

func (d *dgx) gpu(i int) *server.Device { return d.Devices[i].(*server.Device) }

func (d *dgx) open(t *testing.T) *inventory {
	inv, err := newInventory(d, Options{Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	return inv
}

func TestADGXHasEightDevices(t *testing.T) {
	d := newDGX()
	inv := d.open(t)
	defer inv.Close()
	devices, err := inv.Devices()
	require.NoError(t, err)
	require.Len(t, devices, 8)
	for i, dev := range devices {
		assert.Equal(t, Device{ID: d.gpu(i).UUID, Kind: KindCUDA, Name: "NVIDIA H200 141GB HBM3e", Index: i, TotalBytes: int64(d.gpu(i).MemoryInfo.Total)}, dev)
		m, err := inv.Memory(dev.ID)
		require.NoError(t, err)
		assert.Equal(t, dev.TotalBytes-1<<30, m.Free)
		ps, err := inv.Processes(dev.ID)
		require.NoError(t, err)
		assert.Equal(t, []Process{{100 + i, 1 << 30}}, ps)
	}
}

func TestGPUThatSharesTheHostsMemoryIsMeasuredThere(t *testing.T) {
	d := newDGX()
	d.gpu(0).GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_NOT_SUPPORTED }
	inv := d.open(t)
	devices, _ := inv.Devices()
	assert.Positive(t, devices[0].TotalBytes)
	m, err := inv.Memory(devices[0].ID)
	require.NoError(t, err)
	assert.Positive(t, m.Free)
}

func TestSymbolsAreLookedUpBeforeOptionalCalls(t *testing.T) {
	d := newDGX() // its mocks panic when a function that is not filled in is called
	d.LookupSymbolFunc = func(string) error { return errors.New("not in this driver") }
	for i := range 8 {
		d.gpu(i).GetMigModeFunc, d.gpu(i).GetComputeRunningProcessesFunc, d.gpu(i).RegisterEventsFunc = nil, nil, nil
	}
	d.EventSetCreateFunc = nil
	synctest.Test(t, func(t *testing.T) {
		inv := d.open(t)
		_, err := inv.Processes(inv.units[0].ID)
		require.ErrorContains(t, err, "update it")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, inv.Watch(ctx, func(Fault) { t.Error("there was no fault") }))
	})
}

func TestWatchTellsAStormOfTheSameXidOnce(t *testing.T) {
	d := newDGX()
	synctest.Test(t, func(t *testing.T) {
		d.events = make(chan nvml.EventData)
		inv := d.open(t)
		ctx, cancel := context.WithCancel(t.Context())
		var faults []Fault
		done := make(chan error, 1)
		go func() { done <- inv.Watch(ctx, func(f Fault) { faults = append(faults, f) }) }()
		xid := nvml.EventData{Device: d.gpu(2), EventType: nvml.EventTypeXidCriticalError, EventData: 31, GpuInstanceId: wholeGPU}
		for range 1000 {
			d.events <- xid
		}
		d.events <- nvml.EventData{Device: d.gpu(2), EventType: nvml.EventTypeClock}
		synctest.Wait()
		require.Len(t, faults, 1)
		time.Sleep(inv.watch.repeat)
		d.events <- xid
		d.events <- nvml.EventData{EventType: nvml.EventTypeXidCriticalError, EventData: 79}
		cancel()
		require.NoError(t, <-done)
		require.Len(t, faults, 3, "later it is news again")
		assert.Equal(t, Fault{Xid: 79, Message: faults[2].Message}, faults[2], "nobody's Xid condemns no device")
	})
}

func TestWatchWaitsLongerAndLongerAfterAnErrorThatLasts(t *testing.T) {
	d := newDGX()
	d.broken = nvml.ERROR_GPU_IS_LOST
	d.gpu(3).GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.waits == 0 {
			return d.gpu(3).MemoryInfo, nvml.SUCCESS
		}
		return nvml.Memory{}, nvml.ERROR_GPU_IS_LOST
	}
	synctest.Test(t, func(t *testing.T) {
		inv := d.open(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var faults []Fault
		require.NoError(t, inv.Watch(ctx, func(f Fault) { faults = append(faults, f) }))
		assert.Less(t, d.waits, 80, "an hour of a lost GPU is about one try a minute")
		assert.Greater(t, d.waits, 50)
		require.Len(t, faults, 1, "the loss is told once")
		assert.Equal(t, inv.units[3].ID, faults[0].Device)
	})
}

func TestWaitThatReturnsEarlyIsNoBusyLoop(t *testing.T) {
	d := newDGX()
	d.broken = nvml.ERROR_TIMEOUT
	synctest.Test(t, func(t *testing.T) {
		inv := d.open(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, inv.Watch(ctx, func(Fault) {}))
		assert.LessOrEqual(t, d.waits, 61)
	})
}

func TestHungWaitForEventsDoesNotHoldTheEndOfWatch(t *testing.T) {
	d := newDGX()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		d.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
			return &mock.EventSet{
				FreeFunc: func() nvml.Return { panic("a set is freed while a wait on it is under way") },
				WaitFunc: func(uint32) (nvml.EventData, nvml.Return) {
					<-release
					return nvml.EventData{}, nvml.ERROR_UNKNOWN
				},
			}, nvml.SUCCESS
		}
		inv := d.open(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, inv.Watch(ctx, func(Fault) {}))
		close(release)
	})
}

func TestInitThatNeverReturnsIsAnError(t *testing.T) {
	d := newDGX()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		d.InitFunc = func() nvml.Return { <-release; return nvml.SUCCESS }
		_, err := newInventory(d, Options{Log: slog.New(slog.DiscardHandler)})
		require.ErrorIs(t, err, ErrHung)
		close(release)
	})
}
