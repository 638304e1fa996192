package placement

import (
	"encoding/binary"
	"slices"
)

// metaDevice is one device, or several added up, as gossip sends them.
type metaDevice struct {
	kind                    byte
	problem                 bool
	total, mem              uint64 // in memory units
	free, busy, quarantined uint64
	warm                    []uint64 // by index into the runtimes that are sent
}

func measure(devices []Device, runtimes []Runtime) []metaDevice {
	out := make([]metaDevice, 0, len(devices))
	for _, d := range devices {
		m := metaDevice{
			kind: index(metaDevices, d.Kind), problem: d.Problem != "",
			total: units(d.TotalBytes), mem: units(d.FreeBytes),
			free: count(d.Free), busy: count(d.Busy), quarantined: count(d.Quarantined),
			warm: make([]uint64, len(runtimes)),
		}
		for i, r := range runtimes {
			m.warm[i] = count(d.Warm[r.Name])
		}
		out = append(out, m)
	}
	return out
}

// The ways to group devices, finest first.
func each(in []metaDevice) []metaDevice { return in }

func bySize(in []metaDevice) []metaDevice {
	return sum(in, func(a, b metaDevice) bool {
		return a.kind == b.kind && a.problem == b.problem && a.total == b.total
	})
}

func byKind(in []metaDevice) []metaDevice {
	return sum(in, func(a, b metaDevice) bool { return a.kind == b.kind && a.problem == b.problem })
}

// sum adds up the devices that are alike, in the order of their first.
func sum(in []metaDevice, alike func(a, b metaDevice) bool) []metaDevice {
	var firsts, out []metaDevice
	for _, d := range in {
		i := slices.IndexFunc(firsts, func(f metaDevice) bool { return alike(f, d) })
		if i < 0 {
			firsts = append(firsts, d)
			d.warm = slices.Clone(d.warm)
			out = append(out, d)
			continue
		}
		o := &out[i]
		o.total, o.mem = min(maxUnits, o.total+d.total), min(maxUnits, o.mem+d.mem)
		o.free, o.busy = min(maxCount, o.free+d.free), min(maxCount, o.busy+d.busy)
		o.quarantined = min(maxCount, o.quarantined+d.quarantined)
		for k, n := range d.warm {
			o.warm[k] = min(maxCount, o.warm[k]+n)
		}
	}
	return out
}

func units(bytes int64) uint64 { return uint64(min(max(bytes, 0)>>memoryUnit, maxUnits)) }
func count(n int) uint64       { return uint64(min(max(n, 0), maxCount)) }

func (d metaDevice) append(b []byte, sameTotal bool) []byte {
	bits := d.kind
	if d.problem {
		bits |= devProblem
	}
	if sameTotal {
		bits |= devSameTotal
	}
	if d.quarantined > 0 {
		bits |= devQuarantined
	}
	b = append(b, bits)
	if !sameTotal {
		b = binary.AppendUvarint(b, d.total)
	}
	b = binary.AppendUvarint(b, d.mem)
	b = binary.AppendUvarint(b, d.free)
	b = binary.AppendUvarint(b, d.busy)
	if d.quarantined > 0 {
		b = binary.AppendUvarint(b, d.quarantined)
	}
	for _, n := range d.warm {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// device reads what metaDevice.append wrote. total is the previous device's.
func (r *metaReader) device(first bool, total *uint64, runtimes []Runtime) Device {
	bits := r.byte()
	d := Device{Kind: r.word(metaDevices, bits&3)}
	if bits&^(3|devProblem|devSameTotal|devQuarantined) != 0 || first && bits&devSameTotal != 0 {
		r.fail("unknown form of device")
	}
	if bits&devProblem != 0 {
		d.Problem = Elsewhere
	}
	if bits&devSameTotal == 0 {
		*total = r.uvarint(maxUnits)
	}
	d.TotalBytes, d.FreeBytes = int64(*total)<<memoryUnit, int64(r.uvarint(maxUnits))<<memoryUnit
	d.Free, d.Busy = int(r.uvarint(maxCount)), int(r.uvarint(maxCount))
	if bits&devQuarantined != 0 {
		if d.Quarantined = int(r.uvarint(maxCount)); d.Quarantined == 0 {
			r.fail("quarantine of nothing")
		}
	}
	d.Slots = d.Free + d.Busy + d.Quarantined
	for _, rt := range runtimes {
		if n := r.uvarint(maxCount); n > 0 {
			if d.Warm == nil {
				d.Warm = map[string]int{}
			}
			d.Warm[rt.Name] = int(n)
		}
	}
	return d
}
