//go:build cgo && linux

package gpu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// watchTimes are the paces of Watch.
type watchTimes struct {
	wait   time.Duration // one wait for events; ctx is looked at between two
	probe  time.Duration // between two looks at every device
	repeat time.Duration // the same Xid on the same device is told once in this time
	maxGap time.Duration // the longest pause after an error that lasts
}

var defaultWatch = watchTimes{wait: time.Second, probe: 5 * time.Second, repeat: 10 * time.Second, maxGap: time.Minute}

// wholeGPU is the driver's word for "not one MIG slice".
const wholeGPU = 0xFFFFFFFF

// watcher is one run of Watch. One goroutine owns it.
type watcher struct {
	*inventory
	report func(Fault)
	told   map[[2]string]time.Time // device and message -> when
	down   map[*unit]bool          // told as lost or hung
	gate   chan struct{}           // of the wait for events
	looked time.Time
}

// Watch waits for Xid events, and looks at every device now and then: a GPU can
// be lost without an event, and some drivers have no events at all.
func (n *inventory) Watch(ctx context.Context, report func(Fault)) error {
	w := &watcher{inventory: n, report: report, told: map[[2]string]time.Time{}, down: map[*unit]bool{}, gate: newGate()}
	gap := n.watch.wait
	for ctx.Err() == nil {
		began := time.Now()
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		w.look()
		// An error that comes back at once lasts: wait longer each time.
		if time.Since(began) > n.watch.maxGap {
			gap = n.watch.wait
		}
		n.log.Warn("wait for GPU events", "err", err, "next_try", gap)
		pause(ctx, gap)
		gap = min(2*gap, n.watch.maxGap)
	}
	return nil
}

// follow reports events until waiting for them fails, or ctx ends.
func (w *watcher) follow(ctx context.Context) error {
	set, err := w.register()
	if err != nil {
		return err
	}
	hung := false
	defer func() {
		if set != nil && !hung { // a set that somebody still waits on cannot be freed
			_ = set.Free()
		}
	}()
	for ctx.Err() == nil {
		began := time.Now()
		ev, err := w.next(set)
		switch {
		case err == nil:
			w.event(ev)
		case errors.Is(err, nvml.ERROR_TIMEOUT):
			// A wait that returns early must not become a busy loop.
			pause(ctx, w.watch.wait-time.Since(began))
		default:
			hung = errors.Is(err, ErrHung)
			return err
		}
		if time.Since(w.looked) >= w.watch.probe {
			w.look()
		}
	}
	return nil
}

// next waits for one event; without a set there is none.
func (w *watcher) next(set nvml.EventSet) (nvml.EventData, error) {
	if set == nil {
		return nvml.EventData{}, nvml.ERROR_TIMEOUT
	}
	return ask(w.gate, w.watch.wait+w.bound, func() (nvml.EventData, nvml.Return) {
		return set.Wait(uint32(w.watch.wait.Milliseconds()))
	})
}

// register makes an event set over every GPU that answers. It is nil, without an
// error, where the driver has no events: then looking must do.
func (w *watcher) register() (nvml.EventSet, error) {
	if !w.has("nvmlEventSetCreate") || !w.has("nvmlDeviceRegisterEvents") || !w.has("nvmlEventSetFree") ||
		(!w.has("nvmlEventSetWait_v2") && !w.has("nvmlEventSetWait")) {
		return nil, nil
	}
	set, err := ask(newGate(), w.bound, w.lib.EventSetCreate)
	if errors.Is(err, nvml.ERROR_NOT_SUPPORTED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("create event set: %w", err)
	}
	done := map[nvml.Device]bool{}
	good := 0
	for _, u := range w.units {
		if u.parent == nil || done[u.parent] || w.down[u] {
			continue
		}
		done[u.parent] = true
		_, err := ask(u.gate, w.bound, func() (struct{}, nvml.Return) {
			return struct{}{}, u.parent.RegisterEvents(nvml.EventTypeXidCriticalError, set)
		})
		if err == nil {
			good++
			continue
		}
		w.log.Info("GPU has no events, only looked at", "device", u.ID, "err", err)
	}
	if good == 0 { // an empty set fails at once
		_ = set.Free()
		return nil, nil
	}
	return set, nil
}

// event reports an Xid to each device that it concerns.
func (w *watcher) event(ev nvml.EventData) {
	if ev.EventType != nvml.EventTypeXidCriticalError {
		return
	}
	units := w.concerned(ev)
	if len(units) == 0 {
		f := xidFault("", ev.EventData)
		f.Fatal = false // look says which device is really gone
		w.tell(f)
		w.look()
		return
	}
	for _, u := range units {
		f := xidFault(u.ID, ev.EventData)
		if f.Fatal {
			w.mu.Lock()
			p := w.problems[u]
			p.xid = f.Message
			w.problems[u] = p
			w.mu.Unlock()
		}
		w.tell(f)
	}
}

// concerned finds the units of an event: the GPU, the one slice that the event
// names, or every slice of the GPU when it names none.
func (w *watcher) concerned(ev nvml.EventData) []*unit {
	if ev.Device == nil {
		return nil
	}
	id := ""
	if !slices.ContainsFunc(w.units, func(u *unit) bool { return u.parent == ev.Device }) {
		id, _ = ask(newGate(), w.bound, ev.Device.GetUUID) // another handle for a GPU we know?
	}
	var all, one []*unit
	for _, u := range w.units {
		if u.parent == nil || (u.parent != ev.Device && (id == "" || cmp.Or(u.Parent, u.ID) != id)) {
			continue
		}
		all = append(all, u)
		if ev.GpuInstanceId != wholeGPU && u.slice == int(ev.GpuInstanceId) {
			one = append(one, u)
		}
	}
	if len(one) > 0 {
		return one
	}
	return all
}

// look asks every device for its memory, the cheapest question there is and one
// that it answered before, and reports the ones that have just stopped answering, or begun to again.
func (w *watcher) look() {
	w.looked = time.Now()
	for _, u := range w.units {
		if u.handle == nil {
			continue
		}
		_, err := w.measure(u)
		switch {
		case err != nil && !w.down[u]:
			w.tell(Fault{Device: u.ID, Fatal: true, Message: err.Error()})
		case err == nil && w.down[u]:
			clear(w.told) // were it lost again, that would be news
			w.tell(Fault{Device: u.ID, Message: "answers again"})
		}
		w.down[u] = err != nil
	}
}

// tell reports a fault, unless the very same was reported a moment ago: a broken
// program can raise thousands of Xids a second.
func (w *watcher) tell(f Fault) {
	key := [2]string{f.Device, f.Message}
	now := time.Now()
	if last, ok := w.told[key]; ok && now.Sub(last) < w.watch.repeat {
		return
	}
	if len(w.told) > 1024 {
		clear(w.told)
	}
	w.told[key] = now
	w.report(f)
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
