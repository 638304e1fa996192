package host

import (
	"sync/atomic"
	"testing"
	"time"
)

// Standstill is the longest time for which this machine left undone what was due: its
// own machine had other work, or its cores had. A host that is booted here cannot keep
// a promise meanwhile, and is not to blame.
type Standstill struct{ longest atomic.Int64 }

// WatchStandstill looks every 10 ms until the test ends.
func WatchStandstill(t testing.TB) *Standstill {
	s, end, ended := new(Standstill), make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(end); <-ended })
	go func() {
		defer close(ended)
		const every = 10 * time.Millisecond
		for {
			due := time.Now().Add(every)
			select {
			case <-end:
				return
			case <-time.After(every):
				s.longest.Store(max(s.longest.Load(), int64(time.Since(due))))
			}
		}
	}()
	return s
}

// Longest is the longest one so far.
func (s *Standstill) Longest() time.Duration { return time.Duration(s.longest.Load()) }
