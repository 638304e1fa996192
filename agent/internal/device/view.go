package device

import (
	"context"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"time"

	"warmd/placement"
)

// View is what the loop last published. It is immutable.
type View struct {
	Device  placement.Device
	Workers []WorkerView
}

// WorkerView is one worker of a View.
type WorkerView struct {
	Info
	Placement, Endpoint string
	Tier                placement.Tier
	Since               time.Time
	Problem             string
	Quarantined         bool
}

// View is the last published state. It never waits.
func (d *Device) View() *View { return d.view.Load() }

// FreeBytes is the free memory as last measured.
func (d *Device) FreeBytes() int64 { return d.free.Load() }

// have counts the device. Slots grows when more is here than was configured (an
// operator lowered the number, or strangers were found), so that the sum holds.
func (d *Device) have() Have {
	h := Have{Slots: d.cfg.Slots, Draining: d.draining, Quarantined: len(d.strange)}
	for _, l := range d.busy {
		if l.quarantined != "" {
			h.Quarantined++
		} else {
			h.Busy++
		}
	}
	h.Slots = max(h.Slots, h.Busy+h.Quarantined)
	for _, p := range d.parked {
		h.Parked = append(h.Parked, Parked{p.id, p.runtime, p.state})
	}
	return h
}

// publish makes a new View.
func (d *Device) publish() {
	h := d.have()
	v := &View{Device: placement.Device{
		ID: d.cfg.ID, Kind: d.cfg.Kind, Name: d.cfg.Name, TotalBytes: d.cfg.TotalBytes, FreeBytes: d.free.Load(),
		Slots: h.Slots, Free: h.Free(), Busy: h.Busy, Quarantined: h.Quarantined, Problem: d.problem(),
	}}
	for _, p := range d.parked {
		if p.state == Warm {
			if v.Device.Warm == nil {
				v.Device.Warm = make(map[string]int)
			}
			v.Device.Warm[p.runtime]++
		}
		v.Workers = append(v.Workers, p.view())
	}
	for id, l := range d.busy {
		v.Device.Placements = append(v.Device.Placements, id)
		if p := l.e.Placement(); p.Sleeping && p.State == placement.Ready {
			if v.Device.Sleeping == nil {
				v.Device.Sleeping = make(map[string]string)
			}
			v.Device.Sleeping[id] = p.Request.Key()
		}
		v.Workers = append(v.Workers, l.view())
	}
	for _, s := range d.strange {
		v.Workers = append(v.Workers, s.view())
	}
	sort.Strings(v.Device.Placements)
	sort.Slice(v.Workers, func(i, j int) bool { return v.Workers[i].ID < v.Workers[j].ID })
	old := d.view.Swap(v)
	if old == nil || !reflect.DeepEqual(old, v) {
		d.cfg.OnChange()
	}
}

// problem says why the device takes nothing. A runtime whose forks fail is one
// only when no other runtime could start here.
func (d *Device) problem() string {
	if d.fault != "" {
		return d.fault
	}
	if len(d.cfg.Runtimes) == 0 {
		return "no runtime is installed for it: warmd runtime add"
	}
	var out []string
	for name := range d.cfg.Runtimes {
		b := d.backoff[name]
		if b == nil || b.fails < maxFails {
			return ""
		}
		out = append(out, fmt.Sprintf("runtime %s: %d workers in a row died before they were warm, last: %s", name, b.fails, b.last))
	}
	sort.Strings(out)
	return strings.Join(out, "; ")
}

// measureEvery keeps the free memory fresh; it is the only thing that happens on
// an idle device.
func (d *Device) measureEvery(ctx context.Context) {
	t := time.NewTicker(d.cfg.Timings.Measure)
	defer t.Stop()
	d.measure()
	close(d.measured)
	d.cfg.OnChange()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			d.measure()
		}
	}
}

func (d *Device) measure() {
	free, _, err := d.cfg.Memory.Free()
	if err != nil {
		d.cfg.Log.Debug("measure free memory", "err", err)
		return
	}
	d.free.Store(free)
}
