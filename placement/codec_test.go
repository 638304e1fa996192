package placement

import (
	"bytes"
	"compress/flate"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// gpuNode is a host with n devices of one slot.
func gpuNode(n int) Capacity {
	c := Capacity{
		Node: "gpu1", Epoch: 1_790_000_000_123_456_789, Generation: 4711, Addr: "10.1.2.3:7710", Version: "0.1.0",
		Runtimes: []Runtime{{Name: "vllm", Kind: "vllm", Device: "cuda", Zygote: "up", Engine: "vllm", Version: "0.32.0", ProfileKey: strings.Repeat("ab", 32)}},
	}
	for i := range n {
		d := Device{
			ID: fmt.Sprintf("GPU-%08x-1234-5678-9abc-%012x", i*2654435761, i), Kind: "cuda", Name: "NVIDIA H200",
			TotalBytes: 150_754_820_096, FreeBytes: 149_000_000_000 - int64(i)<<30, Slots: 1, Free: 1, Warm: map[string]int{"vllm": 1},
		}
		if i%3 == 1 {
			d.Free, d.Busy, d.Warm, d.Placements = 0, 1, nil, []string{fmt.Sprintf("p-%d", i)}
		}
		c.Devices = append(c.Devices, d)
	}
	return c
}

func TestSummaryOfOrdinaryNodesKeepsEveryDevice(t *testing.T) {
	for devices, most := range map[int]int{1: 40, 4: 60, 8: 90, 14: MaxMeta} {
		b := EncodeMeta(gpuNode(devices))
		got, err := DecodeMeta(b)
		require.NoError(t, err)
		assert.Len(t, got.Devices, devices)
		assert.LessOrEqual(t, len(b), most, "%d devices", devices)
	}
}

func TestSummaryKeepsWhatPlacingNeeds(t *testing.T) {
	c := gpuNode(3)
	c.Draining, c.Coordinator = true, true
	c.Devices[2].Problem = "fell off the bus"
	c.Devices[2].Slots, c.Devices[2].Free, c.Devices[2].Quarantined, c.Devices[2].Warm = 1, 0, 1, nil
	c.Runtimes = append(c.Runtimes, Runtime{Name: "llamacpp", Kind: "exec", Zygote: "down", Problem: "no such file"})
	got, err := DecodeMeta(EncodeMeta(c))
	require.NoError(t, err)
	gib := func(n int64) int64 { return n >> memoryUnit << memoryUnit }
	assert.Equal(t, Capacity{
		Epoch: c.Epoch, Generation: c.Generation, Addr: c.Addr, Draining: true, Coordinator: true, Summary: true,
		Runtimes: []Runtime{{Name: "vllm", Kind: "vllm", Device: "cuda", Zygote: "up"}, {Name: "llamacpp", Kind: "exec", Zygote: "down", Problem: Elsewhere}},
		Devices: []Device{
			{Kind: "cuda", TotalBytes: gib(c.Devices[0].TotalBytes), FreeBytes: gib(c.Devices[0].FreeBytes), Slots: 1, Free: 1, Warm: map[string]int{"vllm": 1}},
			{Kind: "cuda", TotalBytes: gib(c.Devices[1].TotalBytes), FreeBytes: gib(c.Devices[1].FreeBytes), Slots: 1, Busy: 1},
			{Kind: "cuda", TotalBytes: gib(c.Devices[2].TotalBytes), FreeBytes: gib(c.Devices[2].FreeBytes), Slots: 1, Quarantined: 1, Problem: Elsewhere},
		},
	}, got)
}

// Eight GPUs cut into seven MIG slices each, and worse.
func TestSummaryOfManySlicesAddsThemUp(t *testing.T) {
	for _, n := range []int{16, 56, 500} {
		c := gpuNode(n)
		b := EncodeMeta(c)
		assert.LessOrEqual(t, len(b), MaxMeta)
		got, err := DecodeMeta(b)
		require.NoError(t, err)
		assert.Equal(t, totals(c), totals(got), "%d devices", n)
		assert.Equal(t, c.Addr, got.Addr)
	}
}

// A broken device takes nothing: its slots must not hide among those of healthy ones.
func TestSummaryNeverAddsABrokenDeviceToHealthyOnes(t *testing.T) {
	for sizes := range 2 { // all alike, or each of its own
		c := gpuNode(56)
		c.Devices[0].Problem = "fell off the bus"
		for i := range c.Devices {
			c.Devices[i].TotalBytes += int64(i*sizes) << 30
		}
		got, err := DecodeMeta(EncodeMeta(c))
		require.NoError(t, err)
		require.Len(t, got.Devices, 2)
		assert.Equal(t, []int{1, 55}, []int{got.Devices[0].Slots, got.Devices[1].Slots})
		assert.Equal(t, []string{Elsewhere, ""}, []string{got.Devices[0].Problem, got.Devices[1].Problem})
	}
}

func totals(c Capacity) string {
	slots, free, busy, quarantined, warm := c.Totals()
	return fmt.Sprint(slots, free, busy, quarantined, warm)
}

func TestSummaryKeepsEveryFormOfAddress(t *testing.T) {
	for _, addr := range []string{
		"", "10.0.0.1:7710", "[fe80::1]:1", "[fe80::1%eth0]:1", "[::ffff:10.0.0.1]:7710", "gpu1.example.com:7710", "unix:///x", "010.0.0.1:7710",
	} {
		c, err := DecodeMeta(EncodeMeta(Capacity{Addr: addr}))
		require.NoError(t, err)
		assert.Equal(t, addr, c.Addr)
	}
	for _, addr := range []string{strings.Repeat("x", maxMetaAddr+1), "with space:1", "nul\x00:1"} {
		c, err := DecodeMeta(EncodeMeta(Capacity{Addr: addr}))
		require.NoError(t, err)
		assert.Empty(t, c.Addr)
	}
}

func drawCapacity(t *rapid.T) Capacity {
	count := rapid.OneOf(rapid.IntRange(0, 8), rapid.Int())
	word := rapid.OneOf(rapid.SampledFrom([]string{"", "vllm", "exec", "cpu", "cuda", "up", "down", "starting"}), rapid.String())
	name := rapid.StringMatching(`[a-z0-9][a-z0-9.-]{0,127}`)
	c := Capacity{
		Node: name.Draw(t, "node"), Epoch: rapid.Int64().Draw(t, "epoch"), Generation: rapid.Uint64().Draw(t, "generation"),
		Addr: rapid.OneOf(rapid.String(), rapid.Just("10.0.0.1:1"), name).Draw(t, "addr"), Draining: rapid.Bool().Draw(t, "draining"),
	}
	for range rapid.IntRange(0, 12).Draw(t, "runtimes") {
		c.Runtimes = append(c.Runtimes, Runtime{Name: name.Draw(t, "name"), Kind: word.Draw(t, "kind"), Device: word.Draw(t, "for"), Zygote: word.Draw(t, "zygote"), Problem: word.Draw(t, "problem")})
	}
	for range rapid.SampledFrom([]int{0, 1, 2, 8, 16, 56, 200}).Draw(t, "devices") {
		d := Device{
			ID: name.Draw(t, "id"), Kind: word.Draw(t, "device"), Problem: word.Draw(t, "broken"),
			TotalBytes: rapid.Int64().Draw(t, "total"), FreeBytes: rapid.Int64().Draw(t, "mem"),
			Free: count.Draw(t, "free"), Busy: count.Draw(t, "busy"), Quarantined: count.Draw(t, "quarantined"), Warm: map[string]int{},
		}
		for _, r := range c.Runtimes {
			d.Warm[r.Name] = count.Draw(t, "warm")
		}
		c.Devices = append(c.Devices, d)
	}
	return c
}

// Whatever the topology: it fits, it reads back, and what reads back says the same.
func TestSummaryFitsForAnyTopology(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawCapacity(t)
		b := EncodeMeta(c)
		if len(b) > MaxMeta {
			t.Fatalf("%d bytes", len(b))
		}
		checkMeta(t, b)
		got, _ := DecodeMeta(b)
		if got.Epoch != c.Epoch || got.Generation != c.Generation || got.Draining != c.Draining {
			t.Fatalf("the head changed: %+v", got)
		}
	})
}

type failer interface{ Fatalf(string, ...any) }

// checkMeta is the promise of a summary that decodes: it is in range, and written
// again it means the same.
func checkMeta(t failer, b []byte) {
	c, err := DecodeMeta(b)
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	if !c.Summary || c.Node != "" {
		t.Fatalf("not a summary: %+v", c)
	}
	for _, d := range c.Devices {
		if d.Free+d.Busy+d.Quarantined != d.Slots || min(d.Free, d.Busy, d.Quarantined) < 0 || d.FreeBytes < 0 || d.TotalBytes < 0 {
			t.Fatalf("a device that cannot be: %+v", d)
		}
	}
	again, err := DecodeMeta(EncodeMeta(c))
	if err != nil {
		t.Fatalf("decode again: %v", err)
	}
	if !reflect.DeepEqual(c, again) {
		t.Fatalf("written again it says\n%+v\nnot\n%+v", again, c)
	}
}

func TestSummaryIsStrict(t *testing.T) {
	good := EncodeMeta(gpuNode(2))
	for n := range good {
		_, err := DecodeMeta(good[:n])
		assert.Error(t, err, "cut to %d bytes", n)
	}
	_, err := DecodeMeta(append(bytes.Clone(good), 0))
	assert.ErrorContains(t, err, "bytes behind the end")
	_, err = DecodeMeta(append([]byte{2}, good[1:]...))
	assert.ErrorContains(t, err, "version 2, this build reads 1")
	flagged := bytes.Clone(good)
	flagged[1] |= 1 << 7
	_, err = DecodeMeta(flagged)
	assert.ErrorContains(t, err, "unknown flags")
	head := EncodeMeta(Capacity{}) // ends with the count of devices
	_, err = DecodeMeta(append(head[:len(head)-1], 1, devSameTotal, 0, 0, 0))
	assert.ErrorContains(t, err, "unknown form of device", "the first device has no one to share a size with")
	_, err = DecodeMeta(make([]byte, MaxMeta+1))
	assert.ErrorContains(t, err, "at most 128")
}

func TestExactCapacityReadsBack(t *testing.T) {
	for _, n := range []int{0, 1, 8, 56} {
		c := gpuNode(n)
		b, err := EncodeCapacity(c)
		require.NoError(t, err)
		got, err := DecodeCapacity(b)
		require.NoError(t, err)
		assert.Equal(t, fmt.Sprintf("%+v", c), fmt.Sprintf("%+v", got))
		if n <= 8 {
			assert.LessOrEqual(t, len(b), 1300, "%d devices fit one packet", n)
		}
	}
}

func TestExactCapacityGivesUpPlacementIDsBeforeCounts(t *testing.T) {
	c := gpuNode(100)
	for i := range c.Devices {
		for j := range 200 {
			c.Devices[i].Placements = append(c.Devices[i].Placements, fmt.Sprintf("placement-%d-%d", i, j))
		}
	}
	b, err := EncodeCapacity(c)
	require.NoError(t, err)
	got, err := DecodeCapacity(b)
	require.NoError(t, err)
	assert.Equal(t, totals(c), totals(got))
	assert.Empty(t, got.Devices[1].Placements)
	assert.Len(t, c.Devices[1].Placements, 201, "the caller's own is untouched")

	c.Devices[0].Problem = strings.Repeat("x", MaxCapacity)
	_, err = EncodeCapacity(c)
	assert.ErrorContains(t, err, "encode capacity of gpu1")
}

func TestExactCapacityIsBounded(t *testing.T) {
	bomb := []byte{exactVersion, exactDeflated}
	b, err := EncodeCapacity(Capacity{Node: "a", Version: strings.Repeat(" ", MaxCapacity-100)})
	require.NoError(t, err)
	assert.Less(t, len(b), 2000, "blanks deflate well")
	_, err = DecodeCapacity(b)
	assert.ErrorContains(t, err, "too long")
	_, err = DecodeCapacity(append(bomb, b[2:len(b)/2]...))
	assert.Error(t, err)
	_, err = DecodeCapacity(append([]byte{exactVersion, exactPlain}, bytes.Repeat([]byte("["), MaxCapacity+1)...))
	assert.ErrorContains(t, err, "more than")
	for _, b := range [][]byte{nil, {1}, {9, 0, '{', '}'}, {1, 9, '{', '}'}, {1, 0}, {1, 0, '{', '}'}, {1, 1, 0xff}} {
		_, err := DecodeCapacity(b)
		assert.Error(t, err, "%v", b)
	}
}

func TestExactCapacityNamesTheBadField(t *testing.T) {
	for field, spoil := range map[string]func(*Capacity){
		"node":             func(c *Capacity) { c.Node = "-x" },
		"devices":          func(c *Capacity) { c.Devices = make([]Device, maxDevices+1) },
		"devices[1].id":    func(c *Capacity) { c.Devices[1].ID = "" },
		"devices[0]":       func(c *Capacity) { c.Devices[0].Busy = -1 },
		"devices[1]":       func(c *Capacity) { c.Devices[1].FreeBytes = -1 },
		"devices[0].warm":  func(c *Capacity) { c.Devices[0].Warm = map[string]int{"a": -1} },
		"runtimes[0].name": func(c *Capacity) { c.Runtimes[0].Name = "" },
		"runtimes":         func(c *Capacity) { c.Runtimes = make([]Runtime, maxRuntimes+1) },
		"addr":             func(c *Capacity) { c.Addr = strings.Repeat("x", MaxText+1) },
	} {
		c := gpuNode(2)
		spoil(&c)
		b, err := EncodeCapacity(c)
		require.NoError(t, err)
		_, err = DecodeCapacity(b)
		var bad *FieldError
		if assert.ErrorAs(t, err, &bad, field) {
			assert.Equal(t, field, bad.Field)
		}
	}
}

func TestBombIsNotUnpacked(t *testing.T) {
	var bomb bytes.Buffer
	bomb.Write([]byte{exactVersion, exactDeflated})
	w, err := flate.NewWriter(&bomb, flate.BestSpeed)
	require.NoError(t, err)
	for range 16 {
		_, err = w.Write(make([]byte, 1<<20))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = DecodeCapacity(bomb.Bytes())
	runtime.ReadMemStats(&after)
	assert.ErrorContains(t, err, "more than")
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(16*MaxCapacity), "16 MiB of zeros in %d bytes", bomb.Len())
}

// A later build adds fields within the version; this one must still understand.
func TestExactCapacitySkipsFieldsItDoesNotKnow(t *testing.T) {
	c, err := DecodeCapacity(append([]byte{exactVersion, exactPlain}, `{"node":"a","epoch":1,"generation":2,"devices":[],"rack":"r7"}`...))
	require.NoError(t, err)
	assert.Equal(t, "a", c.Node)
}

func FuzzDecodeMeta(f *testing.F) {
	for _, n := range []int{0, 1, 8, 56} {
		f.Add(EncodeMeta(gpuNode(n)))
	}
	f.Add(EncodeMeta(Capacity{Addr: "[::1]:1", Coordinator: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := DecodeMeta(b); err == nil {
			checkMeta(t, b)
		}
	})
}

func FuzzDecodeCapacity(f *testing.F) {
	for _, n := range []int{0, 1, 56} {
		b, _ := EncodeCapacity(gpuNode(n))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCapacity(b)
		if err != nil {
			return
		}
		again, err := EncodeCapacity(c)
		if err != nil {
			return // bad UTF-8 grows when it is written
		}
		if _, err := DecodeCapacity(again); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if m := EncodeMeta(c); len(m) > MaxMeta {
			t.Fatalf("its summary has %d bytes", len(m))
		}
	})
}
