package placer

import (
	"context"
	"sync"
	"time"

	"warmd/placement"
)

// maxLines bounds what a flight keeps for callers that join late. Phases beyond it
// are dropped; what a caller branches on never is.
const maxLines = 256

// Flight is one placement under way and everybody who follows it: one goroutine
// writes lines, any number of callers read them all, from the first on.
type Flight struct {
	req   placement.Request
	begin time.Time

	mu        sync.Mutex
	lines     []placement.Progress
	grew      chan struct{} // closed and replaced with every line
	cur       placement.Placement
	over      bool
	followers int
	// unwanted is called when the last follower leaves while nothing is recorded
	// yet: nobody waits for a queued request any more.
	unwanted context.CancelFunc
}

func newFlight(r placement.Request, now time.Time) *Flight {
	return &Flight{req: r, begin: now, grew: make(chan struct{})}
}

// Follow calls each for every line until the last, until each returns false, or
// until ctx ends.
func (f *Flight) Follow(ctx context.Context, each func(placement.Progress) bool) error {
	f.mu.Lock()
	f.followers++
	f.mu.Unlock()
	defer f.leave()
	for next := 0; ; {
		f.mu.Lock()
		news, over, grew := f.lines[next:], f.over, f.grew
		next += len(news)
		f.mu.Unlock()
		for _, l := range news {
			if !each(l) || l.Last() {
				return nil
			}
		}
		if over {
			return placement.Errorf(placement.CodeUnavailable, "this coordinator stopped while it placed the model").
				WithHint("ask again with the same request id: another coordinator finishes the placement")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-grew:
		}
	}
}

func (f *Flight) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.followers--
	if f.followers == 0 && f.unwanted != nil {
		f.unwanted()
	}
}

// wanted sets what happens when nobody follows any more; nil: nothing.
func (f *Flight) wanted(cancel context.CancelFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unwanted = cancel
}

// say adds a line. cur is the placement as of that line; nil leaves it.
func (f *Flight) say(l placement.Progress, cur *placement.Placement) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	if cur != nil {
		f.cur = *cur
		seen := *cur
		l.Placement = &seen
	}
	l.Elapsed, l.Capacity = time.Since(f.begin).Seconds(), nil
	if l.Event == placement.EventPhase && len(f.lines) >= maxLines {
		return
	}
	f.lines = append(f.lines, l)
	f.over = l.Last()
	f.wake()
}

// end ends a flight that never came to a last line: the coordinator stops.
func (f *Flight) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.over {
		f.over = true
		f.wake()
	}
}

func (f *Flight) wake() {
	close(f.grew)
	f.grew = make(chan struct{})
}

func (f *Flight) current() (placement.Placement, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cur, f.cur.ID != ""
}

func (f *Flight) placementID() string { p, _ := f.current(); return p.ID }
