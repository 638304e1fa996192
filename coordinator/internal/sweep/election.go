package sweep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"warmd/coordinator/internal/store"
)

// Election says who lives and who sweeps, by one lease of this coordinator in etcd.
//
//	coordinators/<instance>  exists while the lease lives: the owner of its records
//	leader/<lease>           the oldest one leads
//
// The lease may run out while its holder believes to lead: that is what [store.Fence]
// is for. Nothing here is trusted to be exclusive.
type Election struct {
	Client *store.Client
	Prefix string // ends in "/"
	// Name is what others call this coordinator, Instance this life of it.
	Name, Instance string
	// TTL of the lease in seconds: how long a dead coordinator counts as alive.
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
	grant, err := e.Client.Grant(ctx, int64(e.TTL))
	if err != nil {
		return fmt.Errorf("get a lease: %w", err)
	}
	// The session must outlive ctx by the farewell, so it has a context of its own.
	sctx, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	session, err := concurrency.NewSession(e.Client, concurrency.WithTTL(e.TTL), concurrency.WithLease(grant.ID), concurrency.WithContext(sctx))
	if err != nil {
		return fmt.Errorf("keep the lease: %w", err)
	}
	defer e.part(session)
	if _, err := e.Client.Put(ctx, e.Prefix+"coordinators/"+e.Instance, e.Name, clientv3.WithLease(grant.ID)); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	// Campaign does not notice that its own lease ran out while it waited: it would
	// return as the leader of nothing. So the session ends it.
	tctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(session.Ctx(), cancel)
	defer stop()
	election := concurrency.NewElection(session, e.Prefix+"leader")
	won := make(chan error, 1)
	// In a goroutine, since a cancelled Campaign resigns without a deadline.
	go func() { won <- election.Campaign(tctx, e.Name) }()
	select {
	case <-tctx.Done():
		return errors.New("the lease ended while waiting to lead")
	case err = <-won:
	}
	if err != nil {
		return fmt.Errorf("campaign: %w", err)
	}
	fence := store.Fence{Key: election.Key(), Rev: election.Rev()}
	got, err := e.Client.Get(tctx, fence.Key)
	if err != nil {
		return fmt.Errorf("confirm the election: %w", err)
	}
	if len(got.Kvs) == 0 || got.Kvs[0].CreateRevision != fence.Rev {
		return errors.New("elected with a lease that has ended")
	}
	lead(tctx, fence)
	return nil
}

// part gives office and lease back at once, so that a successor need not wait for it
// to run out.
func (e *Election) part(s *concurrency.Session) {
	ctx, cancel := context.WithTimeout(context.Background(), partTime)
	defer cancel()
	s.Orphan()
	_, _ = e.Client.Revoke(ctx, s.Lease())
}

// Living names the instances that hold a lease now.
func (e *Election) Living(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*partTime)
	defer cancel()
	resp, err := e.Client.Get(ctx, e.Prefix+"coordinators/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
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
	for ctx.Err() == nil {
		wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		for resp := range e.Client.Watch(wctx, e.Prefix+"coordinators/", clientv3.WithPrefix(), clientv3.WithFilterPut()) {
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
	resp, err := e.Client.Get(ctx, e.Prefix+"leader/", clientv3.WithFirstCreate()...)
	if err != nil || len(resp.Kvs) == 0 {
		return "", err
	}
	return string(resp.Kvs[0].Value), nil
}
