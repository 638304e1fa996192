package agent

import (
	"reflect"
	"sort"
	"time"

	"warmd/agent/api"
	"warmd/placement"
)

// Gossip is what the agent needs of the fleet's membership.
type Gossip interface {
	// SetCapacity never blocks: the latest word wins.
	SetCapacity(placement.Capacity)
	Fleet() placement.Fleet
}

// memoryStep is how much free memory must move before it is news to the fleet.
const memoryStep = 64 << 20

// Capacity is the node's exact capacity now. It reads what the loops published
// last and waits for nothing but other readers of it.
func (a *Agent) Capacity() placement.Capacity {
	a.capMu.Lock()
	defer a.capMu.Unlock()
	next := placement.Capacity{
		Node: a.cfg.Node, Epoch: a.epoch, Addr: a.addr, Version: a.cfg.Version, Draining: a.draining.Load(),
		Devices: make([]placement.Device, 0, len(a.devices)),
	}
	for _, d := range a.devices {
		v := d.View().Device
		v.FreeBytes = d.FreeBytes()
		next.Devices = append(next.Devices, v)
	}
	for _, name := range a.runtimeNames {
		r := a.runtimes[name]
		m, s := r.manifest, r.Status()
		next.Runtimes = append(next.Runtimes, placement.Runtime{
			Name: name, Kind: m.Kind, Engine: m.Engine, Version: m.Version, Device: m.Device,
			ProfileKey: m.ProfileKey, Zygote: zygoteOf(m.Kind, s.Zygote), Problem: s.Problem,
		})
	}
	next.Generation = a.last.Generation
	if !sameCapacity(a.last, next) {
		next.Generation++
		a.last = next
	}
	next.Generation = a.last.Generation
	return next
}

// zygoteOf: an exec runtime's helper forks nothing warm, so nobody is to hope.
func zygoteOf(kind, state string) string {
	if kind == "exec" {
		return ""
	}
	return state
}

// sameCapacity compares, small movements of the free memory aside.
func sameCapacity(a, b placement.Capacity) bool {
	if len(a.Devices) != len(b.Devices) || a.Epoch != b.Epoch {
		return false
	}
	devices := append([]placement.Device(nil), b.Devices...)
	for i := range devices {
		if diff := devices[i].FreeBytes - a.Devices[i].FreeBytes; diff < memoryStep && diff > -memoryStep {
			devices[i].FreeBytes = a.Devices[i].FreeBytes
		}
	}
	b.Devices = devices
	return reflect.DeepEqual(a, b)
}

// Fleet is this member's view of the fleet; without gossip that is the node itself.
func (a *Agent) Fleet() placement.Fleet {
	if a.opt.Gossip != nil {
		return a.opt.Gossip.Fleet()
	}
	return placement.Fleet{From: a.cfg.Node, At: time.Now(), Nodes: []placement.NodeView{{Capacity: a.Capacity(), Alive: true, Status: "alive"}}}
}

// Workers lists every worker of every device.
func (a *Agent) Workers() []api.Worker {
	out := []api.Worker{}
	for _, d := range a.devices {
		for _, w := range d.View().Workers {
			out = append(out, api.Worker{
				ID: w.ID, Node: a.cfg.Node, Device: d.ID(), Runtime: w.Runtime, Generation: w.Generation, State: w.State,
				Tier: string(w.Tier), Placement: w.Placement, Endpoint: w.Endpoint, Since: w.Since,
				EnginePID: w.EnginePID, APIPID: w.APIPID, RSSBytes: rss(w.PIDs()...), Problem: w.Problem,
			})
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Device < out[j].Device })
	return out
}
