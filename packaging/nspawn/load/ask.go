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
const callTime = 30 * time.Second

// maxInFlight bounds the calls of one Ask that wait for their answers: more would
// only measure this process.
const maxInFlight = 2048

// Ask calls do so many times a second, and does not wait for an answer before it
// asks again: a server that stalls meets what came meanwhile. While maxInFlight
// wait it does not ask, and counts what it has left out.
func Ask(ctx context.Context, perSecond int, do func(context.Context) error) *Load {
	running, cancel := context.WithCancel(ctx)
	l := &Load{Tally: new(Tally), cancel: cancel}
	slots := make(chan struct{}, maxInFlight)
	l.done.Go(func() {
		begin := time.Now()
		for n := 1; ; n++ {
			select {
			case <-running.Done():
				l.Lasted(time.Since(begin))
				return
			case <-time.After(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(perSecond)))):
			}
			select {
			case slots <- struct{}{}:
				l.done.Go(func() { l.call(ctx, do); <-slots })
			default:
				l.LeftOut()
			}
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
