package sweep

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// errLeaseEnded ends a term.
var errLeaseEnded = errors.New("the lease has ended")

func (e *Election) ttl() time.Duration { return time.Duration(e.TTL) * time.Second }

// grant gets a lease, and says in which term of etcd's it was granted.
func (e *Election) grant(ctx context.Context) (id clientv3.LeaseID, term uint64, err error) {
	err = e.ask(ctx, func(ctx context.Context) error {
		got, err := e.Client.Grant(ctx, int64(e.TTL))
		if err == nil {
			id, term = got.ID, got.ResponseHeader.GetRaftTerm()
		}
		return err
	})
	return id, term, err
}

// keep renews a lease until ctx ends, or until etcd says that the lease has: it alone
// knows. While etcd has no leader no lease runs out, however long its holder hears nothing,
// and the next leader grants each its time anew. Who gave up by its own clock would stand
// again behind its own old candidacy, and nobody would lead until that had run out.
//
// It tells the terms of etcd's that its renewals see, of which a reader may miss some but
// the last.
//
// Every renewal is a call of its own, short enough for others to follow it. The client's
// KeepAlive holds a stream to one member: if that is stopped, gRPC takes 12 s to notice,
// and the lease of a healthy coordinator runs out.
func (e *Election) keep(ctx context.Context, id clientv3.LeaseID, terms chan uint64) error {
	pause := e.ttl() / 10
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		switch term, err := e.renew(ctx, id); {
		case err == nil:
			pause = e.ttl() / 10
			select {
			case <-terms: // an older one, not read yet
			default:
			}
			terms <- term
		case errors.Is(err, errLeaseEnded):
			return err
		default:
			pause = e.ttl() / 50
		}
	}
}

// renewTries is how many members are asked for one renewal.
const renewTries = 4

// renew asks a member, and where it does not answer in a moment the next ones, too: the
// client takes its members in turn, but other calls take turns between ours, so that one
// try after the other may meet a silent member each time until the lease has run out.
func (e *Election) renew(ctx context.Context, id clientv3.LeaseID) (term uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.ttl()/6)
	defer cancel()
	type answer struct {
		term uint64
		err  error
	}
	answers := make(chan answer, renewTries)
	next := time.NewTicker(e.ttl() / 60)
	defer next.Stop()
	for asked, told := 0, 0; told < renewTries; {
		if asked < renewTries {
			asked++
			go func() {
				term, err := e.renewOnce(ctx, id)
				answers <- answer{term, err}
			}()
		}
		select {
		case a := <-answers:
			if a.err == nil || errors.Is(a.err, errLeaseEnded) {
				return a.term, a.err
			}
			err = a.err
			told++
		case <-next.C:
		}
	}
	return 0, err
}

func (e *Election) renewOnce(ctx context.Context, id clientv3.LeaseID) (term uint64, err error) {
	// A member without a leader refuses at once, and the next one is asked.
	stream, err := clientv3.RetryLeaseClient(e.Client).LeaseKeepAlive(clientv3.WithRequireLeader(ctx))
	if err != nil {
		return 0, err
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return 0, err
	}
	got, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	if got.TTL <= 0 {
		return 0, errLeaseEnded
	}
	return got.Header.GetRaftTerm(), nil
}

// askTimes bound the tries of a call: the client goes on to another member, for one that
// is stopped, or back from a partition and not heard yet, would take all the time there is.
// Each is longer than the last, for an etcd that is slow as a whole.
var askTimes = []time.Duration{500 * time.Millisecond, time.Second, 1500 * time.Millisecond}

// ask makes a call that may be made twice.
func (e *Election) ask(ctx context.Context, call func(context.Context) error) (err error) {
	for _, t := range askTimes {
		try, cancel := context.WithTimeout(ctx, t)
		err = call(try)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (e *Election) read(ctx context.Context, folder string, opts ...clientv3.OpOption) (got *clientv3.GetResponse, err error) {
	err = e.ask(ctx, func(ctx context.Context) (err error) {
		got, err = e.Client.Get(ctx, e.Prefix+folder, opts...)
		return err
	})
	return got, err
}

// revoke ends a lease, whoever holds it, and what is kept by it.
func (e *Election) revoke(ctx context.Context, id clientv3.LeaseID) error {
	return e.ask(ctx, func(ctx context.Context) error {
		_, err := e.Client.Revoke(ctx, id)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil // somebody else did, or it ran out
		}
		return err
	})
}
