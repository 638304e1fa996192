package host

import (
	"testing"
	"time"
)

// Standstill is the longest time for which this machine left undone what was due: its
// own machine had other work, or its cores had. A host that is booted here cannot keep
// a promise meanwhile, and is not to blame.
type Standstill struct {
	ask chan chan time.Duration
}

// WatchStandstill looks every 10 ms until the test ends.
func WatchStandstill(t testing.TB) *Standstill {
	s := &Standstill{ask: make(chan chan time.Duration)}
	end, ended := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(end); <-ended })
	go func() {
		defer close(ended)
		const every = 10 * time.Millisecond
		var longest time.Duration
		for {
			due := time.Now().Add(every)
			select {
			case <-end:
				return
			case to := <-s.ask:
				to <- longest
			case <-time.After(every):
				longest = max(longest, time.Since(due))
			}
		}
	}()
	return s
}

// Longest is the longest one so far.
func (s *Standstill) Longest() time.Duration {
	to := make(chan time.Duration)
	s.ask <- to
	return <-to
}
