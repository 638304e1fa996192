package load

import (
	"context"
	"sync"
	"time"
)

// Load is something that runs until Stop.
type Load struct {
	*Tally
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// Stop asks no more, waits for what is under way and returns the books.
func (l *Load) Stop() *Tally {
	l.cancel()
	l.done.Wait()
	return l.Tally
}

// callTime bounds one call: who waits for longer has been let down.
const callTime = 10 * time.Second

// Ask calls do so many times a second, and does not wait for an answer before it
// asks again: a server that stalls meets everything that came meanwhile.
func Ask(ctx context.Context, perSecond int, do func(context.Context) error) *Load {
	running, cancel := context.WithCancel(ctx)
	l := &Load{Tally: new(Tally), cancel: cancel}
	l.done.Go(func() {
		begin := time.Now()
		for n := 1; ; n++ {
			select {
			case <-running.Done():
				return
			case <-time.After(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(perSecond)))):
			}
			l.done.Go(func() { l.call(ctx, do) })
		}
	})
	return l
}

// Repeat calls do over and over in so many rows, each of which waits for its answer.
func Repeat(ctx context.Context, rows int, do func(context.Context) error) *Load {
	running, cancel := context.WithCancel(ctx)
	l := &Load{Tally: new(Tally), cancel: cancel}
	for range rows {
		l.done.Go(func() {
			for running.Err() == nil {
				l.call(ctx, do)
			}
		})
	}
	return l
}

// call outlives Stop, not the test.
func (l *Load) call(ctx context.Context, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	begin := time.Now()
	err := do(ctx)
	l.Count(time.Since(begin), err)
}
