package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"warmd/placement"
)

// Placer is what a placement goes through: a coordinator's client, or several that
// take turns.
type Placer interface {
	Place(ctx context.Context, r placement.Request) (placement.Placement, error)
	Release(ctx context.Context, id string) (placement.Placement, error)
}

// Told is what a client knows of one placement in the end.
type Told struct {
	Request string // the request id, and the served name
	ID      string // once somebody said it
	Tries   int
	// Ready and Released are what was confirmed; Err is the last word otherwise.
	Ready, Released bool
	Err             error
	Took            time.Duration // first asked to ready
}

// Placements is a stream of placements under way.
type Placements struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	told   []*Told
}

// Stream is how Place goes about it.
type Stream struct {
	// Base is the request; its request id becomes the prefix of all of them.
	Base placement.Request
	// PerSecond is how many are asked for, whatever becomes of the others.
	PerSecond float64
	// Keep leaves one in so many running: what runs on is lost easily.
	Keep int
	// Check is called with each that is ready, before its release.
	Check func(context.Context, placement.Placement) error
	// Patience is how long one client tries, with the same request id.
	Patience time.Duration
}

// Place starts a stream of placements, each released once it is ready and checked.
func Place(ctx context.Context, through Placer, s Stream) *Placements {
	running, cancel := context.WithCancel(ctx)
	p := &Placements{cancel: cancel}
	p.done.Go(func() {
		begin := time.Now()
		for n := 0; ; n++ {
			select {
			case <-running.Done():
				return
			case <-time.After(time.Until(begin.Add(time.Duration(float64(n) / s.PerSecond * float64(time.Second))))):
			}
			told := &Told{Request: fmt.Sprintf("%s-%d", s.Base.ID, n)}
			p.mu.Lock()
			p.told = append(p.told, told)
			p.mu.Unlock()
			keep := s.Keep > 0 && n%s.Keep == 0
			r := s.Base
			r.ID, r.Name = told.Request, told.Request
			p.done.Go(func() { told.live(ctx, through, r, keep, s) })
		}
	})
	return p
}

// Stop asks for no more, waits until every client has its answer and returns them all.
func (p *Placements) Stop() []*Told {
	p.cancel()
	p.done.Wait()
	return p.told
}

// One is a single client with the stream's manners: Base is its request. With Keep it
// does not release.
func One(ctx context.Context, through Placer, s Stream) *Told {
	told := &Told{Request: s.Base.ID}
	told.live(ctx, through, s.Base, s.Keep > 0, s)
	return told
}

// live is the life of one client: place, check, release, each tried again while the
// answer is not known.
func (told *Told) live(ctx context.Context, through Placer, r placement.Request, keep bool, s Stream) {
	ctx, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	begin := time.Now()
	told.Err = insist(ctx, func() error {
		told.Tries++
		got, err := through.Place(ctx, r)
		if got.ID != "" {
			told.ID = got.ID
		}
		if err == nil && got.State != placement.Ready {
			err = fmt.Errorf("place: answered without an error, in state %q", got.State)
		}
		if err != nil {
			return err
		}
		told.Took = time.Since(begin)
		if s.Check != nil {
			err = s.Check(ctx, got)
		}
		return err
	})
	if told.Err != nil {
		return
	}
	told.Ready = true
	if keep {
		return
	}
	told.Err = insist(ctx, func() error {
		_, err := through.Release(ctx, told.ID)
		return err
	})
	told.Released = told.Err == nil
}

// insist tries again while nobody could be reached or said that it does not know
// yet, with the pause that any client would make.
func insist(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil || !unknown(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// unknown says whether an error leaves open what became of the call.
func unknown(err error) bool {
	if e, ok := errors.AsType[*placement.Error](err); ok {
		return e.Code == placement.CodeUnavailable
	}
	return !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled)
}
