package placer

import (
	"math/rand/v2"
	"time"
)

// idAlphabet is base32 in ASCII order without letters that look like digits, so
// that ids sort by the time they were made.
const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// newID makes "p-" and ten characters: 40 bits of milliseconds since 2020, 10 bits
// by chance. Two of one millisecond may be equal; the store then refuses the second
// and another is made, so that a collision costs a round trip and nothing else.
func newID(now time.Time) string {
	v := uint64(now.UnixMilli()-1_577_836_800_000)&(1<<40-1)<<10 | rand.Uint64N(1<<10)
	b := []byte("p-0123456789")
	for i := len(b) - 1; i >= 2; i-- {
		b[i] = idAlphabet[v&31]
		v >>= 5
	}
	return string(b)
}

// freshID is one that no start of this placer has. The caller holds p.mu.
func (p *Placer) freshID() string {
	for now := time.Now(); ; now = now.Add(time.Millisecond) {
		if id := newID(now); p.byID[id] == nil {
			return id
		}
	}
}
