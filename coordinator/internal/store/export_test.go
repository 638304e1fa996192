package store

import "context"

// WatchFrom is one watch from a revision, without Follow's patience.
func (s *Etcd) WatchFrom(ctx context.Context, rev int64, each func(Change)) error {
	return s.watch(ctx, rev, each)
}
