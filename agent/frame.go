package agent

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// A journal file is a row of frames:
//
//	magic (4)  length of the payload (4)  crc32c of the payload (4)  payload
//
// The magic lets a reader find the next whole frame behind damage; the sum decides
// whether it is one.
const (
	frameHead  = 12
	maxPayload = 1 << 20
)

var (
	frameMagic = []byte("wjF1")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// frame wraps a payload.
func frame(payload []byte) []byte {
	out := make([]byte, frameHead, frameHead+len(payload))
	copy(out, frameMagic)
	binary.LittleEndian.PutUint32(out[4:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(out[8:], crc32.Checksum(payload, castagnoli))
	return append(out, payload...)
}

// frames calls each with every payload that verifies, in order, and returns how
// many bytes belong to none. It takes any input.
func frames(b []byte, each func(payload []byte)) (damaged int) {
	for len(b) > 0 {
		if p, ok := firstFrame(b); ok {
			each(p)
			b = b[frameHead+len(p):]
			continue
		}
		skip := bytes.Index(b[1:], frameMagic)
		if skip < 0 {
			return damaged + len(b)
		}
		damaged += skip + 1
		b = b[skip+1:]
	}
	return damaged
}

func firstFrame(b []byte) ([]byte, bool) {
	if len(b) < frameHead || !bytes.Equal(b[:4], frameMagic) {
		return nil, false
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if n > maxPayload || int(n) > len(b)-frameHead {
		return nil, false
	}
	p := b[frameHead : frameHead+int(n)]
	return p, crc32.Checksum(p, castagnoli) == binary.LittleEndian.Uint32(b[8:])
}
