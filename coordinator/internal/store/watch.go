package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchPause is how long a follower waits before it starts over.
const watchPause = 500 * time.Millisecond

// Follow tells each the whole state, then every change in order, until ctx ends.
// A lost watch, or one that asks for a compacted revision, starts over with the
// whole state: a follower that applies what it is told is right again, at the
// latest, with the next Reset. each must not block for long.
func (s *Etcd) Follow(ctx context.Context, each func(Change)) error {
	for ctx.Err() == nil {
		all, rev, err := s.list(ctx)
		if err == nil {
			each(Change{Reset: true, All: all, Revision: rev})
			err = s.watch(ctx, rev+1, each)
		}
		if errors.Is(err, rpctypes.ErrCompacted) {
			continue // nothing is wrong: we were too slow
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchPause):
		}
	}
	return nil
}

// watch tells each the changes from rev on; it returns when the watch is lost.
func (s *Etcd) watch(ctx context.Context, rev int64, each func(Change)) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	prefix := s.placement("")
	for resp := range s.cl.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(rev)) {
		if err := resp.Err(); err != nil {
			return fmt.Errorf("watch records: %w", err)
		}
		for _, ev := range resp.Events {
			c := Change{Revision: ev.Kv.ModRevision}
			if ev.Type == clientv3.EventTypeDelete {
				c.Deleted = strings.TrimPrefix(string(ev.Kv.Key), prefix)
			} else {
				r, err := decode(ev.Kv.Value, ev.Kv.ModRevision)
				if err != nil {
					return fmt.Errorf("watch %s: %w", ev.Kv.Key, err)
				}
				c.Put = &r
			}
			each(c)
		}
	}
	return errors.New("watch records: the watch ended")
}
