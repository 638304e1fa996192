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
// many bytes belong to none. It takes any input, and time in proportion to it: a
// file made of false magics could ask for a sum over a megabyte at each of them,
// so what follows too much of that counts as damaged.
func frames(b []byte, each func(payload []byte)) (damaged int) {
	budget := 8*len(b) + maxPayload
	for len(b) > 0 {
		p, ok, cost := firstFrame(b)
		if budget -= cost; budget < 0 {
			return damaged + len(b)
		}
		if ok {
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

// firstFrame checks the frame that b begins with; cost is the bytes it summed.
func firstFrame(b []byte) (payload []byte, ok bool, cost int) {
	if len(b) < frameHead || !bytes.Equal(b[:4], frameMagic) {
		return nil, false, 0
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if n > maxPayload || int(n) > len(b)-frameHead {
		return nil, false, 0
	}
	p := b[frameHead : frameHead+int(n)]
	return p, crc32.Checksum(p, castagnoli) == binary.LittleEndian.Uint32(b[8:]), len(p)
}
