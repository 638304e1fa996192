package sweep

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"warmd/coordinator/internal/store"
)

// Election says who lives and who sweeps, by one lease of this coordinator in etcd.
//
//	coordinators/<instance>  exists while the lease lives: the owner of its records; its
//	                         value answers the roll call (roll.go)
//	leader/<lease>           the oldest one leads
//
// The lease may run out while its holder believes to lead: that is what [store.Fence]
// is for. Nothing here is trusted to be exclusive.
type Election struct {
	Client *store.Client
	Prefix string // ends in "/"
	// Name is what others call this coordinator, Instance this life of it.
	Name, Instance string
	// TTL of the lease in seconds: how long a dead coordinator counts as alive, and less
	// than a second longer when etcd has lost its leader, too.
	TTL int
	Log *slog.Logger
}

// retryPause is the time between two tries to get a lease.
const retryPause = time.Second

// partTime bounds the farewell: with etcd gone the lease runs out by itself.
const partTime = time.Second

// Run keeps the lease and campaigns until ctx ends. lead is called while elected; its
// ctx ends with the lease, and it may return earlier to give the office up.
func (e *Election) Run(ctx context.Context, lead func(ctx context.Context, f store.Fence)) error {
	for ctx.Err() == nil {
		if err := e.term(ctx, lead); err != nil && ctx.Err() == nil {
			e.Log.Warn("election", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
	return nil
}

// term is one lease, from its grant to its end.
func (e *Election) term(ctx context.Context, lead func(context.Context, store.Fence)) error {
	lease, began, err := e.grant(ctx)
	if err != nil {
		return fmt.Errorf("get a lease: %w", err)
	}
	tctx, end := context.WithCancelCause(ctx)
	var keeping sync.WaitGroup
	terms := make(chan uint64, 1)
	keeping.Go(func() { end(e.keep(tctx, lease, terms)) })
	keeping.Go(func() { e.answerRolls(tctx, lease, began, terms) })
	defer func() {
		end(nil)
		keeping.Wait()
		e.part(lease)
	}()
	fence, err := e.campaign(tctx, lease, began)
	if err != nil {
		if cause := context.Cause(tctx); cause != nil {
			err = cause
		}
		return err
	}
	lead(tctx, fence)
	return nil
}

// campaign registers this coordinator, with the term its lease was granted in, and waits
// until it is the oldest candidate.
//
// Not that of etcd's package concurrency: it waits on one watch, and the member that
// serves it may be stopped or cut off; and it would return as the leader of nothing when
// its own lease has run out meanwhile.
func (e *Election) campaign(ctx context.Context, lease clientv3.LeaseID, term uint64) (store.Fence, error) {
	key := fmt.Sprintf("%sleader/%x", e.Prefix, int64(lease))
	err := e.ask(ctx, func(ctx context.Context) error {
		_, err := e.Client.Txn(ctx).Then(
			clientv3.OpPut(e.Prefix+"coordinators/"+e.Instance, e.standing(term), clientv3.WithLease(lease)),
			clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
				[]clientv3.Op{clientv3.OpPut(key, e.Name, clientv3.WithLease(lease))}, nil),
		).Commit()
		return err
	})
	if err != nil {
		return store.Fence{}, fmt.Errorf("register: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	left := make(chan struct{}, 1)
	watching.Go(func() { _ = e.watch(ctx, "leader/", func() { poke(left) }) })
	for {
		got, err := e.read(ctx, "leader/", clientv3.WithFirstCreate()...)
		if err == nil && len(got.Kvs) > 0 && string(got.Kvs[0].Key) == key {
			return store.Fence{Key: key, Rev: got.Kvs[0].CreateRevision}, nil
		}
		select {
		case <-ctx.Done():
			return store.Fence{}, ctx.Err()
		case <-left:
		case <-time.After(lookPause):
		}
	}
}

// lookPause is how often a candidate looks whether it leads, whatever its watch says.
const lookPause = time.Second

// part gives office and lease back at once, so that a successor need not wait for it
// to run out.
func (e *Election) part(lease clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.Background(), partTime)
	defer cancel()
	_ = e.revoke(ctx, lease)
}

// Living names the instances that hold a lease now.
func (e *Election) Living(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*partTime)
	defer cancel()
	resp, err := e.read(ctx, "coordinators/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	living := make(map[string]bool, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		living[path.Base(string(kv.Key))] = true
	}
	return living, nil
}

// Watch calls gone soon after a coordinator has left or its lease has run out, until
// ctx ends. A lost watch starts over; what it missed, the sweeper's own pause finds.
func (e *Election) Watch(ctx context.Context, gone func()) error {
	return e.watch(ctx, "coordinators/", gone)
}

// watch calls gone when a key below a folder is deleted.
func (e *Election) watch(ctx context.Context, folder string, gone func()) error {
	for ctx.Err() == nil {
		wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		for resp := range e.Client.Watch(wctx, e.Prefix+folder, clientv3.WithPrefix(), clientv3.WithFilterPut()) {
			if len(resp.Events) > 0 {
				gone()
			}
			if resp.Err() != nil {
				break
			}
		}
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
	return nil
}

// Leader is the name of the coordinator that sweeps, or "".
func (e *Election) Leader(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, partTime)
	defer cancel()
	resp, err := e.read(ctx, "leader/", clientv3.WithFirstCreate()...)
	if err != nil || len(resp.Kvs) == 0 {
		return "", err
	}
	return string(resp.Kvs[0].Value), nil
}
