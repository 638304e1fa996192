package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Tally counts how calls ended.
type Tally struct {
	mu      sync.Mutex
	ok      int
	failed  map[string]int // by reason
	first   map[string]error
	longest time.Duration // of those that went well
	leftOut int
	lasted  time.Duration
}

// LeftOut adds a call that was not made because too many waited.
func (t *Tally) LeftOut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leftOut++
}

// Lasted says how long it all took.
func (t *Tally) Lasted(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lasted = d
}

// Rate is how many calls a second were made and went well.
func (t *Tally) Rate() float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return float64(t.ok) / t.lasted.Seconds()
}

// Count adds one call.
func (t *Tally) Count(took time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.ok++
		t.longest = max(t.longest, took)
		return
	}
	if t.failed == nil {
		t.failed, t.first = map[string]int{}, map[string]error{}
	}
	why := reason(err)
	if t.failed[why]++; t.first[why] == nil {
		t.first[why] = err
	}
}

// OK is how many calls went well.
func (t *Tally) OK() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ok
}

// Failed is how many did not.
func (t *Tally) Failed() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.failed {
		n += c
	}
	return n
}

// FailedBy is how many failed for one reason: refused, reset, timeout, or other.
func (t *Tally) FailedBy(why string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed[why]
}

// Longest is how long the slowest good call took.
func (t *Tally) Longest() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.longest
}

// String says everything, with an example of each failure.
func (t *Tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := []string{fmt.Sprintf("%d ok (longest %s)", t.ok, t.longest.Round(time.Millisecond))}
	if t.leftOut > 0 {
		s = append(s, fmt.Sprintf("%d left out", t.leftOut))
	}
	for _, why := range slices.SortedFunc(maps.Keys(t.failed), cmp.Compare) {
		s = append(s, fmt.Sprintf("%d %s (%v)", t.failed[why], why, t.first[why]))
	}
	return strings.Join(s, ", ")
}

// reason sorts errors into what matters to a promise. Clients of warmd wrap the
// cause into text, so text is looked at, too.
func reason(err error) string {
	text := err.Error()
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(text, "connection refused"):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		strings.Contains(text, "connection reset") || strings.Contains(text, "EOF") || strings.Contains(text, "broken pipe"):
		return "reset"
	case errors.Is(err, context.DeadlineExceeded) || strings.Contains(text, "deadline exceeded") || strings.Contains(text, "timeout"):
		return "timeout"
	}
	return "other"
}
