package device

import (
	"context"
	"sync"
	"time"

	"warmd/placement"
)

// maxLines bounds what a feed keeps: vLLM's start has some forty phases.
const maxLines = 512

// Feed is the progress of one start: what happened so far, for any number of
// followers, and how many of them there are. A follower that comes late reads it
// from the beginning; a slow one holds up nobody.
type Feed struct {
	mu        sync.Mutex
	begin     time.Time
	lines     []placement.Progress
	wake      chan struct{} // closed and replaced with every line
	followers int
	delivered bool
	over      bool          // the placement has ended: the last line is enough
	poke      chan struct{} // to the guard: followers or delivered changed
}

func newFeed(begin time.Time) *Feed {
	return &Feed{begin: begin, wake: make(chan struct{}), poke: make(chan struct{}, 1)}
}

// Add appends a line. Phases beyond the bound are dropped: the trace has them.
func (f *Feed) Add(p placement.Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.lines) >= maxLines && !p.Last() {
		return
	}
	if n := len(f.lines); n > 0 && f.lines[n-1].Last() && f.lines[n-1].Event != placement.EventReady {
		return // nothing follows a terminal line
	}
	p.Elapsed = max(time.Since(f.begin).Seconds(), 0)
	f.lines = append(f.lines, p)
	close(f.wake)
	f.wake = make(chan struct{})
}

// From returns the lines from i on and a channel that closes when there are more.
func (f *Feed) From(i int) ([]placement.Progress, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lines[min(i, len(f.lines)):], f.wake
}

// Follow writes every line to one follower, from the beginning to the last, and
// counts it as one meanwhile. It returns early when write fails or ctx ends.
func (f *Feed) Follow(ctx context.Context, write func(placement.Progress) error) error {
	defer f.join()()
	for i := 0; ; {
		have, wake := f.From(i)
		for n, p := range have {
			// Behind ready comes the end of the placement only: who comes that late
			// must hear of the end, not the old news.
			if p.Event == placement.EventReady && n+1 < len(have) {
				continue
			}
			if err := write(p); err != nil {
				return err
			}
			if p.Event == placement.EventReady {
				f.wasDelivered()
			}
			if p.Last() {
				return nil
			}
		}
		i += len(have)
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// join counts a follower until the returned function is called.
func (f *Feed) join() (leave func()) {
	f.count(1)
	var once sync.Once
	return func() { once.Do(func() { f.count(-1) }) }
}

func (f *Feed) count(n int) {
	f.mu.Lock()
	f.followers += n
	f.cut()
	f.mu.Unlock()
	f.signal()
}

// wasDelivered notes that the ready line was written to a follower: from then on
// the placement's record rules, and nobody has to follow any more.
func (f *Feed) wasDelivered() {
	f.mu.Lock()
	f.delivered = true
	f.mu.Unlock()
	f.signal()
}

func (f *Feed) watch() (followers int, delivered bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.followers, f.delivered
}

func (f *Feed) signal() {
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// trim keeps the last line only, as soon as nobody follows: what a remembered, ended
// placement answers. What the node had free then is nobody's business any more.
func (f *Feed) trim() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	f.cut()
}

// cut needs f.mu.
func (f *Feed) cut() {
	if n := len(f.lines); f.over && n > 1 && f.lines[n-1].Last() && f.followers == 0 {
		f.lines = append([]placement.Progress(nil), f.lines[n-1])
		f.lines[0].Capacity = nil
	}
}
