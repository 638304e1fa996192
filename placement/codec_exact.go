package placement

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"fmt"
	"io"
)

// MaxCapacity bounds the JSON of one node's exact capacity, before compression and
// after decompression.
const MaxCapacity = 256 << 10

// The exact capacity on the wire: 1 byte version, 1 byte form, then the JSON of a
// [Capacity], as it is or deflated. JSON, because this is the message that grows:
// within one version a reader skips fields it does not know. Deflated, an 8-GPU
// node fits one UDP packet.
const (
	exactVersion  = 1
	exactPlain    = 0
	exactDeflated = 1
	plainUpTo     = 512
)

// The limits of what [DecodeCapacity] accepts.
const (
	maxDevices    = 256
	maxRuntimes   = 256
	maxPlacements = 4096
)

// EncodeCapacity packs the whole state of a node. When it is larger than a reader
// would take, the placement ids are left out: counts matter more.
func EncodeCapacity(c Capacity) ([]byte, error) {
	c.Summary = false
	raw, err := json.Marshal(c)
	if err == nil && len(raw) > MaxCapacity {
		c.Devices = append([]Device(nil), c.Devices...)
		for i := range c.Devices {
			c.Devices[i].Placements, c.Devices[i].Sleeping = nil, nil
		}
		raw, err = json.Marshal(c)
	}
	if err != nil {
		return nil, fmt.Errorf("encode capacity of %s: %w", c.Node, err)
	}
	if len(raw) > MaxCapacity {
		return nil, fmt.Errorf("encode capacity of %s: %d bytes, at most %d can be sent", c.Node, len(raw), MaxCapacity)
	}
	if len(raw) <= plainUpTo {
		return append([]byte{exactVersion, exactPlain}, raw...), nil
	}
	out := bytes.NewBuffer([]byte{exactVersion, exactDeflated})
	w, _ := flate.NewWriter(out, flate.BestSpeed) // the level is valid
	if _, err := w.Write(raw); err != nil {
		return nil, fmt.Errorf("deflate capacity of %s: %w", c.Node, err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("deflate capacity of %s: %w", c.Node, err)
	}
	return out.Bytes(), nil
}

// DecodeCapacity unpacks an exact capacity and checks its limits.
func DecodeCapacity(b []byte) (Capacity, error) {
	if len(b) < 2 || b[0] != exactVersion {
		return Capacity{}, fmt.Errorf("decode capacity: %d bytes, want version %d first", len(b), exactVersion)
	}
	var src io.Reader = bytes.NewReader(b[2:])
	switch b[1] {
	case exactPlain:
	case exactDeflated:
		src = flate.NewReader(src)
	default:
		return Capacity{}, fmt.Errorf("decode capacity: unknown form %d", b[1])
	}
	raw, err := io.ReadAll(io.LimitReader(src, MaxCapacity+1))
	if err != nil {
		return Capacity{}, fmt.Errorf("decode capacity: %w", err)
	}
	if len(raw) > MaxCapacity {
		return Capacity{}, fmt.Errorf("decode capacity: more than %d bytes", MaxCapacity)
	}
	var c Capacity
	if err := json.Unmarshal(raw, &c); err != nil {
		return Capacity{}, fmt.Errorf("decode capacity: %w", err)
	}
	if err := checkCapacity(c); err != nil {
		return Capacity{}, fmt.Errorf("decode capacity: %w", err)
	}
	return c, nil
}

// checkCapacity refuses what no node would say, so that readers need not.
func checkCapacity(c Capacity) error {
	switch {
	case !idRE.MatchString(c.Node):
		return &FieldError{"node", fmt.Sprintf("%q must match %s", clip(c.Node), idRE)}
	case c.Summary:
		return &FieldError{"summary", "must not be set: this is the exact form"}
	case len(c.Devices) > maxDevices:
		return &FieldError{"devices", fmt.Sprintf("has %d entries, at most %d are allowed", len(c.Devices), maxDevices)}
	case len(c.Runtimes) > maxRuntimes:
		return &FieldError{"runtimes", fmt.Sprintf("has %d entries, at most %d are allowed", len(c.Runtimes), maxRuntimes)}
	case len(c.Addr) > MaxText || len(c.Version) > MaxText:
		return &FieldError{"addr", "or version is too long"}
	}
	for i, d := range c.Devices {
		at := fmt.Sprintf("devices[%d]", i)
		switch {
		case d.ID == "" || len(d.ID) > MaxNameText:
			return &FieldError{at + ".id", fmt.Sprintf("must have 1 to %d bytes", MaxNameText)}
		case min(d.Free, d.Busy, d.Quarantined, d.Slots) < 0 || max(d.Free, d.Busy, d.Quarantined, d.Slots) > maxCount:
			return &FieldError{at, fmt.Sprintf("counts must be between 0 and %d", maxCount)}
		case d.TotalBytes < 0 || d.FreeBytes < 0:
			return &FieldError{at, "bytes must not be negative"}
		case len(d.Warm) > maxRuntimes || len(d.Placements) > maxPlacements || len(d.Sleeping) > maxPlacements:
			return &FieldError{at, "lists too much"}
		}
		for name, n := range d.Warm {
			if n < 0 || n > maxCount || len(name) > MaxNameText {
				return &FieldError{at + ".warm", fmt.Sprintf("of %q must be between 0 and %d", clip(name), maxCount)}
			}
		}
	}
	for i, r := range c.Runtimes {
		if !idRE.MatchString(r.Name) {
			return &FieldError{fmt.Sprintf("runtimes[%d].name", i), fmt.Sprintf("%q must match %s", clip(r.Name), idRE)}
		}
	}
	return nil
}
