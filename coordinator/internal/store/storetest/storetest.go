// Package storetest is the contract of a record store, as one suite: it runs over
// the store in memory and over a real etcd, so that what the placer's tests learn
// with the first holds for the second.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/coordinator/internal/store"
	"warmd/placement"
)

// Store is what every record store does.
type Store interface {
	Create(ctx context.Context, r store.Record, f store.Fence) (store.Record, error)
	Update(ctx context.Context, r store.Record, f store.Fence) (store.Record, error)
	Join(ctx context.Context, r store.Record, requestID string) (store.Record, error)
	Delete(ctx context.Context, r store.Record, f store.Fence) error
	Get(ctx context.Context, id string) (store.Record, error)
	ByRequest(ctx context.Context, requestID string) (store.Record, error)
	List(ctx context.Context) ([]store.Record, error)
	Ping(ctx context.Context) error
	Follow(ctx context.Context, each func(store.Change)) error
}

// Harness is an empty store and what a test does behind its back.
type Harness struct {
	Store Store
	// Lead makes an election key, Depose deletes it.
	Lead   func(name string) store.Fence
	Depose func(f store.Fence)
	// Compact throws the history of changes away.
	Compact func()
}

// Record makes a record as the placer would.
func Record(id, requestID string) store.Record {
	return store.Record{
		Placement: placement.Placement{
			ID: id, State: placement.Assigned, Attempt: 1, Node: "n1", Device: "cpu-0",
			Request: placement.Request{ID: requestID, Model: "/models/opt", Env: map[string]string{"A": "1"}}.Normalize(),
			Created: time.Unix(1_700_000_000, 5).UTC(), Updated: time.Unix(1_700_000_000, 5).UTC(),
		},
		Owner: "c1",
	}
}

// Run runs the contract; open makes an empty store for each promise.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	promises := map[string]func(*testing.T, context.Context, Harness){
		"WhatWasCreatedIsReadBack":           readBack,
		"AnIDIsCreatedOnce":                  createdOnce,
		"ARequestIDNamesOneRecord":           requestNamesOne,
		"OneOfManyCreatorsWins":              oneCreatorWins,
		"OneOfManyUpdatersWins":              oneUpdaterWins,
		"AStaleWriterIsTold":                 staleWriter,
		"ARepeatedWriteSucceedsOnce":         repeatedWrite,
		"ADeletedRecordFreesItsRequestID":    deleteFrees,
		"ADeposedLeaderWritesNothing":        deposedLeader,
		"AMissingRecordIsNotFound":           missing,
		"ListIsWholeAndSorted":               listWhole,
		"AFollowerSeesEverythingInOrder":     followOrder,
		"ASlowFollowerSurvivesACompaction":   followCompaction,
		"ACancelledCallSaysSo":               cancelled,
		"AnOtherIDWithATakenRequestIsTold":   takenTells,
		"DeleteNeedsTheRevisionThatWasRead":  deleteStale,
		"ARequestIDCanBeUsedAgainAfterwards": requestReuse,
		"AnotherRequestIDCanNameARecord":     joinNames,
		"ARecordForgetsItsOldestAliases":     joinForgets,
	}
	for name, promise := range promises {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			promise(t, ctx, open(t))
		})
	}
}

func readBack(t *testing.T, ctx context.Context, h Harness) {
	want := Record("p-1", "req-1")
	got, err := h.Store.Create(ctx, want, store.NoFence)
	require.NoError(t, err)
	require.Positive(t, got.Revision)
	read, err := h.Store.Get(ctx, "p-1")
	require.NoError(t, err)
	assert.Equal(t, got, read)
	want.Revision = got.Revision
	assert.Equal(t, want, read, "every field survives")
	byReq, err := h.Store.ByRequest(ctx, "req-1")
	require.NoError(t, err)
	assert.Equal(t, read, byReq)
	require.NoError(t, h.Store.Ping(ctx))
}

func createdOnce(t *testing.T, ctx context.Context, h Harness) {
	_, err := h.Store.Create(ctx, Record("p-1", ""), store.NoFence)
	require.NoError(t, err)
	other := Record("p-1", "")
	other.Node = "n2"
	_, err = h.Store.Create(ctx, other, store.NoFence)
	require.ErrorIs(t, err, store.ErrExists)
	other.Request.ID = "req-9"
	_, err = h.Store.Create(ctx, other, store.NoFence)
	require.ErrorIs(t, err, store.ErrExists)
	_, err = h.Store.ByRequest(ctx, "req-9")
	require.ErrorIs(t, err, store.ErrNotFound, "a lost create leaves no request key")
}

func requestNamesOne(t *testing.T, ctx context.Context, h Harness) {
	first, err := h.Store.Create(ctx, Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)
	have, err := h.Store.Create(ctx, Record("p-2", "req-1"), store.NoFence)
	require.ErrorIs(t, err, store.ErrRequestTaken)
	assert.Equal(t, first, have)
	_, err = h.Store.Get(ctx, "p-2")
	require.ErrorIs(t, err, store.ErrNotFound)
}

func takenTells(t *testing.T, ctx context.Context, h Harness) {
	_, err := h.Store.Create(ctx, Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)
	_, err = h.Store.Create(ctx, Record("p-2", ""), store.NoFence)
	require.NoError(t, err)
	clash := Record("p-2", "req-1") // both keys are taken, by two records
	have, err := h.Store.Create(ctx, clash, store.NoFence)
	require.ErrorIs(t, err, store.ErrRequestTaken)
	assert.Equal(t, "p-1", have.ID)
}

func joinNames(t *testing.T, ctx context.Context, h Harness) {
	first, err := h.Store.Create(ctx, Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)
	other, err := h.Store.Create(ctx, Record("p-2", "req-2"), store.NoFence)
	require.NoError(t, err)
	joined, err := h.Store.Join(ctx, first, "req-3")
	require.NoError(t, err)
	assert.Equal(t, []string{"req-3"}, joined.Aliases)
	for _, id := range []string{"req-1", "req-3"} {
		got, err := h.Store.ByRequest(ctx, id)
		require.NoError(t, err)
		assert.Equal(t, joined, got)
	}
	again, err := h.Store.Join(ctx, first, "req-3")
	require.NoError(t, err, "an answer that was lost")
	assert.Equal(t, joined, again)
	_, err = h.Store.Join(ctx, first, "req-4")
	require.ErrorIs(t, err, store.ErrChanged)
	_, err = h.Store.Join(ctx, other, "req-3")
	require.ErrorIs(t, err, store.ErrRequestTaken)
	_, err = h.Store.Create(ctx, Record("p-3", "req-3"), store.NoFence)
	require.ErrorIs(t, err, store.ErrRequestTaken)
	require.NoError(t, h.Store.Delete(ctx, joined, store.NoFence))
	_, err = h.Store.Create(ctx, Record("p-3", "req-3"), store.NoFence)
	require.NoError(t, err, "its request ids are free again")
	_, err = h.Store.Join(ctx, joined, "req-9")
	require.ErrorIs(t, err, store.ErrChanged, "it is gone")
}

func joinForgets(t *testing.T, ctx context.Context, h Harness) {
	rec, err := h.Store.Create(ctx, Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)
	const many = 70
	for i := range many {
		rec, err = h.Store.Join(ctx, rec, fmt.Sprintf("alias-%02d", i))
		require.NoError(t, err)
	}
	require.Less(t, len(rec.Aliases), many)
	for i, found := range map[int]bool{0: false, many - 1: true} {
		_, err := h.Store.ByRequest(ctx, fmt.Sprintf("alias-%02d", i))
		assert.Equal(t, found, err == nil, "alias %d: %v", i, err)
	}
	_, err = h.Store.ByRequest(ctx, "req-1")
	require.NoError(t, err, "its own is never forgotten")
}

func oneCreatorWins(t *testing.T, ctx context.Context, h Harness) {
	const n = 16
	var mu sync.Mutex
	won, ids := 0, map[string]bool{}
	race(n, func(i int) {
		r, err := h.Store.Create(ctx, Record(fmt.Sprintf("p-%02d", i), "req-1"), store.NoFence)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			won++
		} else {
			assert.ErrorIs(t, err, store.ErrRequestTaken)
		}
		ids[r.ID] = true
	})
	assert.Equal(t, 1, won)
	assert.Len(t, ids, 1, "all are told the same placement")
}

func oneUpdaterWins(t *testing.T, ctx context.Context, h Harness) {
	rec, err := h.Store.Create(ctx, Record("p-1", ""), store.NoFence)
	require.NoError(t, err)
	var mu sync.Mutex
	won := 0
	race(16, func(i int) {
		r := rec
		r.Attempt, r.Node = 2, fmt.Sprintf("n%d", i)
		_, err := h.Store.Update(ctx, r, store.NoFence)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			won++
		} else {
			assert.ErrorIs(t, err, store.ErrChanged)
		}
	})
	assert.Equal(t, 1, won)
}

func staleWriter(t *testing.T, ctx context.Context, h Harness) {
	old, err := h.Store.Create(ctx, Record("p-1", ""), store.NoFence)
	require.NoError(t, err)
	newer := old
	newer.Attempt, newer.Node = 2, "n2"
	newer, err = h.Store.Update(ctx, newer, store.NoFence)
	require.NoError(t, err)
	require.Greater(t, newer.Revision, old.Revision)
	old.State = placement.Ready
	_, err = h.Store.Update(ctx, old, store.NoFence)
	require.ErrorIs(t, err, store.ErrChanged)
	read, err := h.Store.Get(ctx, "p-1")
	require.NoError(t, err)
	assert.Equal(t, newer, read)
}

func repeatedWrite(t *testing.T, ctx context.Context, h Harness) {
	first, err := h.Store.Create(ctx, Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)
	again, err := h.Store.Create(ctx, Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err, "the answer to the first was lost")
	assert.Equal(t, first, again)
	ready := first
	ready.State = placement.Ready
	one, err := h.Store.Update(ctx, ready, store.NoFence)
	require.NoError(t, err)
	two, err := h.Store.Update(ctx, ready, store.NoFence)
	require.NoError(t, err)
	assert.Equal(t, one, two)
}

func deleteFrees(t *testing.T, ctx context.Context, h Harness) {
	rec, err := h.Store.Create(ctx, Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)
	require.NoError(t, h.Store.Delete(ctx, rec, store.NoFence))
	_, err = h.Store.Get(ctx, "p-1")
	require.ErrorIs(t, err, store.ErrNotFound)
	_, err = h.Store.ByRequest(ctx, "req-1")
	require.ErrorIs(t, err, store.ErrNotFound)
	require.NoError(t, h.Store.Delete(ctx, rec, store.NoFence), "deleting what is gone succeeds")
}

func requestReuse(t *testing.T, ctx context.Context, h Harness) {
	rec, err := h.Store.Create(ctx, Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)
	require.NoError(t, h.Store.Delete(ctx, rec, store.NoFence))
	_, err = h.Store.Create(ctx, Record("p-2", "req-1"), store.NoFence)
	require.NoError(t, err)
	_, err = h.Store.Update(ctx, rec, store.NoFence)
	require.ErrorIs(t, err, store.ErrNotFound, "a deleted record does not come back by an update")
}

func deleteStale(t *testing.T, ctx context.Context, h Harness) {
	old, err := h.Store.Create(ctx, Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)
	newer := old
	newer.State = placement.Ready
	_, err = h.Store.Update(ctx, newer, store.NoFence)
	require.NoError(t, err)
	require.ErrorIs(t, h.Store.Delete(ctx, old, store.NoFence), store.ErrChanged)
	_, err = h.Store.ByRequest(ctx, "req-1")
	require.NoError(t, err)
}

func deposedLeader(t *testing.T, ctx context.Context, h Harness) {
	fence := h.Lead("leader")
	rec, err := h.Store.Create(ctx, Record("p-1", ""), fence)
	require.NoError(t, err)
	rec.Owner = "c2"
	rec, err = h.Store.Update(ctx, rec, fence)
	require.NoError(t, err)

	h.Depose(fence)
	successor := h.Lead("leader")
	require.NotEqual(t, fence, successor)
	zombie := rec
	zombie.State = placement.Failed
	_, err = h.Store.Update(ctx, zombie, fence)
	require.ErrorIs(t, err, store.ErrFenced)
	_, err = h.Store.Create(ctx, Record("p-2", "req-2"), fence)
	require.ErrorIs(t, err, store.ErrFenced)
	require.ErrorIs(t, h.Store.Delete(ctx, rec, fence), store.ErrFenced)
	read, err := h.Store.Get(ctx, "p-1")
	require.NoError(t, err)
	assert.Equal(t, rec, read)
	_, err = h.Store.Update(ctx, zombie, successor)
	require.NoError(t, err)
}

func missing(t *testing.T, ctx context.Context, h Harness) {
	_, err := h.Store.Get(ctx, "p-0")
	require.ErrorIs(t, err, store.ErrNotFound)
	_, err = h.Store.ByRequest(ctx, "req-0")
	require.ErrorIs(t, err, store.ErrNotFound)
	_, err = h.Store.Update(ctx, Record("p-0", ""), store.NoFence)
	require.ErrorIs(t, err, store.ErrNotFound)
	all, err := h.Store.List(ctx)
	require.NoError(t, err)
	assert.Empty(t, all)
}

func listWhole(t *testing.T, ctx context.Context, h Harness) {
	const n = 250 // more than one page
	for i := n - 1; i >= 0; i-- {
		_, err := h.Store.Create(ctx, Record(fmt.Sprintf("p-%03d", i), fmt.Sprintf("req-%03d", i)), store.NoFence)
		require.NoError(t, err)
	}
	all, err := h.Store.List(ctx)
	require.NoError(t, err)
	require.Len(t, all, n)
	for i, r := range all {
		require.Equal(t, fmt.Sprintf("p-%03d", i), r.ID)
		require.Positive(t, r.Revision)
	}
}

func followOrder(t *testing.T, ctx context.Context, h Harness) {
	rec, err := h.Store.Create(ctx, Record("p-0", ""), store.NoFence)
	require.NoError(t, err)
	seen := follow(t, ctx, h.Store)
	first := <-seen
	require.True(t, first.Reset)
	require.Equal(t, []store.Record{rec}, first.All)

	rec.State = placement.Ready
	rec, err = h.Store.Update(ctx, rec, store.NoFence)
	require.NoError(t, err)
	other, err := h.Store.Create(ctx, Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)
	require.NoError(t, h.Store.Delete(ctx, other, store.NoFence))
	put, put2, del := <-seen, <-seen, <-seen
	require.NotNil(t, put.Put)
	assert.Equal(t, rec, *put.Put)
	require.NotNil(t, put2.Put)
	assert.Equal(t, other, *put2.Put)
	assert.Equal(t, "p-1", del.Deleted)
	assert.Less(t, put.Revision, put2.Revision)
	assert.Less(t, put2.Revision, del.Revision)
}

// followCompaction holds a follower up while the history it has not read yet is
// thrown away: its picture must be whole again in the end.
func followCompaction(t *testing.T, ctx context.Context, h Harness) {
	gate, picture, last := make(chan struct{}), map[string]placement.State{}, make(chan struct{})
	var once sync.Once
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	started := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.Store.Follow(ctx, func(c store.Change) {
			once.Do(func() { close(started) })
			<-gate
			if c.Reset {
				clear(picture)
				for _, r := range c.All {
					picture[r.ID] = r.State
				}
			}
			if c.Put != nil {
				picture[c.Put.ID] = c.Put.State
			}
			delete(picture, c.Deleted)
			if _, ok := picture["p-last"]; ok {
				select {
				case <-last:
				default:
					close(last)
				}
			}
		})
	}()
	defer func() { cancel(); <-done }()
	<-started
	gone, err := h.Store.Create(ctx, Record("p-gone", ""), store.NoFence)
	require.NoError(t, err)
	for i := range 40 {
		_, err := h.Store.Create(ctx, Record(fmt.Sprintf("p-%02d", i), ""), store.NoFence)
		require.NoError(t, err)
	}
	require.NoError(t, h.Store.Delete(ctx, gone, store.NoFence))
	h.Compact()
	_, err = h.Store.Create(ctx, Record("p-last", ""), store.NoFence)
	require.NoError(t, err)
	close(gate)
	select {
	case <-last:
	case <-ctx.Done():
		t.Fatal("the follower never came to the end")
	}
	cancel()
	<-done
	assert.Len(t, picture, 41)
	assert.NotContains(t, picture, "p-gone")
}

func cancelled(t *testing.T, ctx context.Context, h Harness) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	_, err := h.Store.Create(ctx, Record("p-1", ""), store.NoFence)
	require.ErrorIs(t, err, context.Canceled)
	_, err = h.Store.Get(ctx, "p-1")
	require.True(t, errors.Is(err, context.Canceled))
}

func follow(t *testing.T, ctx context.Context, s Store) <-chan store.Change {
	ctx, cancel := context.WithCancel(ctx)
	seen, done := make(chan store.Change, 1024), make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Follow(ctx, func(c store.Change) { seen <- c })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return seen
}

func race(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}
