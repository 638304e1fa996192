package store

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Pauses between two members that have no leader.
const (
	firstTurn   = 5 * time.Millisecond
	longestTurn = 100 * time.Millisecond
)

// errLeaderless says more than that time is up; the client would ask again after any
// error of etcd's own, and say just that.
var errLeaderless = errors.New("no member has a leader: more than half of them must reach each other")

// passLeaderless goes on to the next member when one has no leader: it was cut off, or
// is back and the others have not called it yet, which takes etcd up to 20 s after a
// partition. It answers its clients all the while, so the balancer keeps it, and each
// call that meets it would wait for a try's whole time. Asked for a leader, it refuses
// at once, and has done nothing; so writes may go on, too, which etcd's own retries do not
// dare. With no leader anywhere, as during an election, this turns until ctx ends.
func passLeaderless(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx = clientv3.WithRequireLeader(ctx)
	for pause := firstTurn; ; pause = min(2*pause, longestTurn) {
		err := invoke(ctx, method, req, reply, cc, opts...)
		if !errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader) {
			return err
		}
		select {
		case <-ctx.Done():
			return errLeaderless
		case <-time.After(pause):
		}
	}
}
