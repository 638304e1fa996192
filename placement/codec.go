package placement

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// MaxMeta bounds what a node says about itself in gossip. The library's own limit
// is 512 bytes, where it panics; ours is far below because the number of fleet
// updates a second that gossip can carry falls with the size of each.
const MaxMeta = 128

// The summary of a node in gossip, version 1. Integers are uvarints unless noted.
//
//	version 1 byte | flags 1 byte | epoch 8 bytes | generation
//	addr      1 byte form: none | 4+2 bytes | 16+2 bytes | text (length, bytes)
//	runtimes  count, then each: 1 byte kind+device+zygote+problem, name (length, bytes)
//	devices   count, then each: 1 byte kind+problem+form, total, free memory (256 MiB
//	          units, rounded down), free, busy, quarantined slots, warm of each runtime
//
// Slots is not sent: it is free + busy + quarantined, so a summary that breaks that
// invariant cannot be written down. Names, ids and exact bytes are not sent; the
// node's name is memberlist's business.
//
// What does not fit is given up in this order: devices of one kind and size become
// one entry with summed counts, then devices of one kind, then the last runtimes,
// then the address. Slot counts are right in every case.
const metaVersion = 1

const (
	metaDraining = 1 << iota
	metaCoordinator
)

// The bits of a device's first byte, above its two bits of kind.
const (
	devProblem = 4 << iota
	devSameTotal
	devQuarantined
)

const (
	memoryUnit  = 28 // FreeBytes and TotalBytes travel in units of 1<<28 bytes
	maxUnits    = 1<<28 - 1
	maxCount    = 1<<14 - 1
	maxMetaName = 32 // a longer runtime name stays out of gossip
	maxMetaAddr = 48 // a longer address stays out of gossip
	// Elsewhere is the Problem of a summary: the words are on the node itself.
	Elsewhere = "has a problem, see the node"
)

var (
	metaKinds   = []string{"", "vllm", "exec"}
	metaDevices = []string{"", "cpu", "cuda"}
	metaZygotes = []string{"", "up", "starting", "down"}
)

// EncodeMeta packs a capacity into at most [MaxMeta] bytes, whatever the topology.
func EncodeMeta(c Capacity) []byte {
	runtimes := sendable(c.Runtimes)
	for _, addr := range []string{c.Addr, ""} {
		for _, group := range []func([]metaDevice) []metaDevice{each, bySize, byKind} {
			if b := appendMeta(c, addr, runtimes, group); len(b) <= MaxMeta {
				return b
			}
		}
		for n := range slices.Backward(runtimes) {
			if b := appendMeta(c, addr, runtimes[:n], byKind); len(b) <= MaxMeta {
				return b
			}
		}
	}
	// Unreachable: 1+1+8+10+1+1+1 bytes of head and six entries of at most 15.
	panic("placement: a summary without address and runtimes exceeds MaxMeta")
}

func appendMeta(c Capacity, addr string, runtimes []Runtime, group func([]metaDevice) []metaDevice) []byte {
	var flags byte
	if c.Draining {
		flags |= metaDraining
	}
	if c.Coordinator {
		flags |= metaCoordinator
	}
	b := append(make([]byte, 0, MaxMeta), metaVersion, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Epoch))
	b = binary.AppendUvarint(b, c.Generation)
	b = appendAddr(b, addr)
	b = append(b, byte(len(runtimes)))
	for _, r := range runtimes {
		bits := index(metaKinds, r.Kind) | index(metaDevices, r.Device)<<2 | index(metaZygotes, r.Zygote)<<4
		if r.Problem != "" {
			bits |= 1 << 6
		}
		b = append(append(b, bits, byte(len(r.Name))), r.Name...)
	}
	devices := group(measure(c.Devices, runtimes))
	b = binary.AppendUvarint(b, uint64(len(devices)))
	var last uint64
	for i, d := range devices {
		b = d.append(b, i > 0 && d.total == last)
		last = d.total
	}
	return b
}

// sendable drops the runtimes whose names cannot travel.
func sendable(have []Runtime) []Runtime {
	var out []Runtime
	for _, r := range have {
		known := slices.ContainsFunc(out, func(o Runtime) bool { return o.Name == r.Name })
		if len(r.Name) <= maxMetaName && idRE.MatchString(r.Name) && !known && len(out) < 255 {
			out = append(out, r)
		}
	}
	return out
}

// The forms of an address.
const (
	addrNone = iota
	addr4
	addr6
	addrText
)

func appendAddr(b []byte, addr string) []byte {
	ap, err := netip.ParseAddrPort(addr)
	switch {
	case err == nil && ap.String() == addr && ap.Addr().Is4():
		a := ap.Addr().As4()
		return binary.BigEndian.AppendUint16(append(append(b, addr4), a[:]...), ap.Port())
	case err == nil && ap.String() == addr && ap.Addr().Zone() == "":
		a := ap.Addr().As16()
		return binary.BigEndian.AppendUint16(append(append(b, addr6), a[:]...), ap.Port())
	case addr == "" || len(addr) > maxMetaAddr || !printable(addr):
		return append(b, addrNone)
	}
	return append(append(b, addrText, byte(len(addr))), addr...)
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f })
}

func index(words []string, w string) byte {
	return byte(max(0, slices.Index(words, w)))
}

// DecodeMeta unpacks a summary. It is strict: another version, a field out of
// range or a byte too many is an error. The result has Summary set and no Node.
func DecodeMeta(b []byte) (Capacity, error) {
	if len(b) > MaxMeta {
		return Capacity{}, fmt.Errorf("decode meta: %d bytes, at most %d are allowed", len(b), MaxMeta)
	}
	r := metaReader{rest: b}
	if v := r.byte(); r.err == nil && v != metaVersion {
		return Capacity{}, fmt.Errorf("decode meta: version %d, this build reads %d", v, metaVersion)
	}
	flags := r.byte()
	c := Capacity{Summary: true, Draining: flags&metaDraining != 0, Coordinator: flags&metaCoordinator != 0}
	if flags&^(metaDraining|metaCoordinator) != 0 {
		r.fail("unknown flags")
	}
	if e := r.take(8); e != nil {
		c.Epoch = int64(binary.BigEndian.Uint64(e))
	}
	c.Generation = r.uvarint(1<<64 - 1)
	c.Addr = r.addr()
	for range r.byte() {
		if r.err != nil {
			break
		}
		c.Runtimes = append(c.Runtimes, r.runtime(c.Runtimes))
	}
	var total uint64
	for i := range r.uvarint(MaxMeta) {
		if r.err != nil {
			break
		}
		c.Devices = append(c.Devices, r.device(i == 0, &total, c.Runtimes))
	}
	if len(r.rest) != 0 {
		r.fail("bytes behind the end")
	}
	if r.err != nil {
		return Capacity{}, fmt.Errorf("decode meta: %w", r.err)
	}
	return c, nil
}

// metaReader reads fields until the first error, after which it reads zeros.
type metaReader struct {
	rest []byte
	err  error
}

func (r *metaReader) fail(why string) {
	if r.err == nil {
		r.err = errors.New(why)
	}
	r.rest = nil
}

func (r *metaReader) take(n int) []byte {
	if len(r.rest) < n {
		r.fail("too short")
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

func (r *metaReader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *metaReader) uvarint(most uint64) uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 || v > most {
		r.fail("number out of range")
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *metaReader) text(most int) string {
	n := int(r.byte())
	if n == 0 || n > most {
		r.fail("text out of range")
		return ""
	}
	return string(r.take(n))
}

func (r *metaReader) word(words []string, i byte) string {
	if int(i) >= len(words) {
		r.fail("unknown kind")
		return ""
	}
	return words[i]
}

func (r *metaReader) addr() string {
	var ip netip.Addr
	switch r.byte() {
	case addrNone:
		return ""
	case addr4:
		ip, _ = netip.AddrFromSlice(r.take(4))
	case addr6:
		ip, _ = netip.AddrFromSlice(r.take(16))
	case addrText:
		s := r.text(maxMetaAddr)
		if !printable(s) {
			r.fail("address is not printable")
			return ""
		}
		return s
	default:
		r.fail("unknown form of address")
	}
	port := r.take(2)
	if r.err != nil {
		return ""
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(port)).String()
}

func (r *metaReader) runtime(seen []Runtime) Runtime {
	bits := r.byte()
	rt := Runtime{Kind: r.word(metaKinds, bits&3), Device: r.word(metaDevices, bits>>2&3), Zygote: metaZygotes[bits>>4&3]}
	if bits&(1<<6) != 0 {
		rt.Problem = Elsewhere
	}
	rt.Name = r.text(maxMetaName)
	if r.err == nil && (bits&(1<<7) != 0 || !idRE.MatchString(rt.Name) || slices.ContainsFunc(seen, func(o Runtime) bool { return o.Name == rt.Name })) {
		r.fail("runtime name is bad or twice there")
	}
	return rt
}
