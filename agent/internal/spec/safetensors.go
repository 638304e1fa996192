package spec

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"os"
	"slices"
)

// maxHeader is the format's own limit for a header.
const maxHeader = 100 << 20

// widths are the bits of an element, by dtype. An unknown dtype is not an error:
// the format grows, and its offsets are checked all the same.
var widths = map[string]uint64{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
	"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}

type tensorInfo struct {
	DType   string   `json:"dtype"`
	Shape   []uint64 `json:"shape"`
	Offsets []uint64 `json:"data_offsets"`
}

// safetensorsHeader reads the header of a file and checks it against the file's
// size: 8 bytes of length, that many bytes of JSON, then data that the tensors'
// offsets cover from the first byte to the last, without a hole or an overlap. It
// returns the tensors' names.
func safetensorsHeader(file string) (map[string]bool, error) {
	if err := regular(file); err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return parseHeader(f, uint64(fi.Size()))
}

func parseHeader(r io.Reader, size uint64) (map[string]bool, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("is truncated: %d bytes, no header", size)
	}
	n := binary.LittleEndian.Uint64(head[:])
	switch {
	case n > maxHeader:
		return nil, fmt.Errorf("is corrupt: its header claims %d bytes", n)
	case n > size-8:
		return nil, fmt.Errorf("is truncated: %d bytes, its header alone has %d", size, n)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	var entries map[string]json.RawMessage
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("is corrupt: its header is not JSON: %w", err)
	}
	delete(entries, "__metadata__")
	if len(entries) == 0 {
		return nil, errors.New("holds no tensor")
	}
	return checkTensors(entries, size-8-n)
}

// checkTensors checks every entry against the data that follows the header.
func checkTensors(entries map[string]json.RawMessage, data uint64) (map[string]bool, error) {
	names := make(map[string]bool, len(entries))
	spans := make([][]uint64, 0, len(entries))
	for _, name := range sortedKeys(entries) {
		var t tensorInfo
		if err := json.Unmarshal(entries[name], &t); err != nil {
			return nil, fmt.Errorf("is corrupt: tensor %q: %w", name, err)
		}
		if len(t.Offsets) != 2 || t.Offsets[0] > t.Offsets[1] {
			return nil, fmt.Errorf("is corrupt: tensor %q has the offsets %v", name, t.Offsets)
		}
		if t.Offsets[1] > data {
			return nil, fmt.Errorf("is truncated: tensor %q ends at byte %d of the data, there are %d", name, t.Offsets[1], data)
		}
		want, known, ok := tensorBytes(t)
		if !ok || (known && want != t.Offsets[1]-t.Offsets[0]) {
			return nil, fmt.Errorf("is corrupt: tensor %q %s%v does not fill the offsets %v", name, t.DType, t.Shape, t.Offsets)
		}
		names[name] = true
		spans = append(spans, t.Offsets)
	}
	slices.SortFunc(spans, slices.Compare)
	var at uint64
	for _, s := range spans {
		if s[0] != at {
			return nil, fmt.Errorf("is corrupt: a hole or an overlap at byte %d of the data", min(s[0], at))
		}
		at = s[1]
	}
	if at != data {
		return nil, fmt.Errorf("is corrupt: %d bytes follow the last tensor", data-at)
	}
	return names, nil
}

// tensorBytes is the size of a tensor; known is false for a dtype we have not
// heard of, ok is false when the size overflows.
func tensorBytes(t tensorInfo) (n uint64, known, ok bool) {
	w, known := widths[t.DType]
	n = 1
	for _, d := range t.Shape {
		hi, lo := bits.Mul64(n, d)
		if hi != 0 {
			return 0, known, false
		}
		n = lo
	}
	hi, lo := bits.Mul64(n, w)
	return lo / 8, known, hi == 0 && lo%8 == 0
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
