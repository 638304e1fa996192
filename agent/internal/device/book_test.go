package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

func open(b *Book, id string, attempt int, model string) (*Entry, bool, error) {
	return b.Open(id, attempt, placement.Request{Model: model}.Normalize(), time.Now())
}

func accept(e *Entry, s placement.State) {
	_ = e.Update(true, func(r *Record) { r.Placement.State = s })
	close(e.decided)
}

func codeOf(err error) placement.Code {
	if err == nil {
		return ""
	}
	return placement.AsError(err).Code
}

func TestTheAttemptIsAFence(t *testing.T) {
	b := NewBook(newFakeJournal())
	e, fresh, err := open(b, "p", 3, "m")
	require.NoError(t, err)
	require.True(t, fresh)
	accept(e, placement.Loading)
	_, _, err = open(b, "p", 2, "m")
	require.Equal(t, placement.CodeStaleAttempt, codeOf(err))
	same, fresh, err := open(b, "p", 3, "m")
	require.NoError(t, err)
	require.False(t, fresh)
	require.Same(t, e, same)
	_, _, err = open(b, "p", 3, "other")
	require.Equal(t, placement.CodeConflict, codeOf(err))
	_, fresh, err = open(b, "p", 5, "m")
	require.NoError(t, err)
	require.False(t, fresh, "a living placement is taken over, not started twice")
	require.Equal(t, 5, e.Placement().Attempt)
	_, _, err = open(b, "p", 4, "m")
	require.Equal(t, placement.CodeStaleAttempt, codeOf(err))
}

func TestARefusedAttemptIsAFenceToo(t *testing.T) {
	b := NewBook(newFakeJournal())
	e, _, _ := open(b, "p", 3, "m")
	b.Refuse(e, placement.Errorf(placement.CodeNoCapacity, "full"))
	require.Nil(t, b.Get("p"))
	_, _, err := open(b, "p", 2, "m")
	require.Equal(t, placement.CodeStaleAttempt, codeOf(err))
	_, fresh, err := open(b, "p", 3, "m")
	require.NoError(t, err)
	require.True(t, fresh, "the same attempt may ask again: there may be room now")
}

func TestAFailedPlacementStartsAnewWithAHigherAttempt(t *testing.T) {
	b := NewBook(newFakeJournal())
	e, _, _ := open(b, "p", 1, "m")
	accept(e, placement.Failed)
	_, _, err := open(b, "p", 2, "m")
	require.Equal(t, placement.CodeNoCapacity, codeOf(err), "its worker may still hold a slot")
	b.Ended(e)
	_, fresh, err := open(b, "p", 1, "m")
	require.NoError(t, err)
	require.False(t, fresh, "the same attempt is the same answer")
	_, fresh, err = open(b, "p", 2, "m")
	require.NoError(t, err)
	require.True(t, fresh)
}

func TestReleasedIsForEver(t *testing.T) {
	b := NewBook(newFakeJournal())
	_, ok := b.Tombstone("p", time.Now())
	require.True(t, ok)
	_, ok = b.Tombstone("p", time.Now())
	require.False(t, ok)
	e, fresh, err := open(b, "p", 7, "m")
	require.NoError(t, err)
	require.False(t, fresh)
	require.Equal(t, placement.Released, e.Placement().State)
	lines, _ := e.Feed.From(0)
	require.Equal(t, placement.EventReleased, lines[len(lines)-1].Event)
}

func TestOneOfManyCallersStartsAndTheOthersFollow(t *testing.T) {
	b := NewBook(newFakeJournal())
	var wg sync.WaitGroup
	var mu sync.Mutex
	starts := 0
	for range 64 {
		wg.Go(func() {
			e, fresh, err := open(b, "p", 1, "m")
			if err == nil && fresh {
				mu.Lock()
				starts++
				mu.Unlock()
				accept(e, placement.Loading)
			} else if err == nil {
				_ = e.Decided()
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, starts)
}

func TestTheBookForgetsTheOldestEnded(t *testing.T) {
	b := NewBook(newFakeJournal())
	for i := range maxEnded + 10 {
		e, _, err := open(b, fmt.Sprint("p", i), 1, "m")
		require.NoError(t, err)
		accept(e, placement.Failed)
		b.Ended(e)
	}
	require.Len(t, b.List(), maxEnded)
	require.Nil(t, b.Get("p9"))
	require.NotNil(t, b.Get("p10"))
	for i := range maxEnded + 10 {
		e, _, _ := open(b, fmt.Sprint("r", i), 1, "m")
		b.Refuse(e, placement.Errorf(placement.CodeNoCapacity, "full"))
	}
	require.Len(t, b.seen, maxEnded)
}

func TestARecordThatCannotBeWrittenDoesNotChange(t *testing.T) {
	j := newFakeJournal()
	b := NewBook(j)
	e, _, _ := open(b, "p", 1, "m")
	accept(e, placement.Loading)
	j.err = errors.New("full")
	_, _, err := open(b, "p", 2, "m")
	require.Equal(t, placement.CodeDiskFull, codeOf(err))
	require.Equal(t, 1, e.Placement().Attempt)
}

func TestALateFollowerReadsFromTheBeginningAndTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(time.Now())
		f.Add(placement.Progress{Event: placement.EventAccepted})
		for range 2 * maxLines {
			f.Add(placement.Progress{Event: placement.EventPhase})
		}
		f.Add(placement.Progress{Event: placement.EventReady})
		f.Add(placement.Progress{Event: placement.EventFailed})
		f.Add(placement.Progress{Event: placement.EventReleased}) // nothing follows a terminal line
		var got []string
		require.NoError(t, f.Follow(t.Context(), func(p placement.Progress) error { got = append(got, p.Event); return nil }))
		require.Equal(t, placement.EventAccepted, got[0])
		require.NotContains(t, got, placement.EventReady)
		require.Equal(t, placement.EventFailed, got[len(got)-1])
		require.LessOrEqual(t, len(got), maxLines+1)
		leave := f.join()
		f.trim()
		lines, _ := f.From(0)
		require.Greater(t, len(lines), 1, "somebody still reads them")
		leave()
		lines, _ = f.From(0)
		require.Len(t, lines, 1)
		_, delivered := f.watch()
		require.False(t, delivered)
	})
}

func TestAFollowerThatGoesAwayIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(time.Now())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Follow(ctx, func(placement.Progress) error { return nil }) }()
		synctest.Wait()
		n, _ := f.watch()
		require.Equal(t, 1, n)
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		n, _ = f.watch()
		require.Zero(t, n)
	})
}
