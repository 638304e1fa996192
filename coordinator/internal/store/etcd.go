package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"warmd/placement"
)

// Client is etcd's client under a name of our own, so that package coordinator can
// take one (warmd dev injects that of its embedded server) without importing etcd.
type Client = clientv3.Client

// tryTimes bound the tries of a call. The second one goes to another member: the first
// may be stopped, which its kernel does not say. Together they bound the call, so that
// with etcd away a placement is refused within 2 s.
var tryTimes = []time.Duration{600 * time.Millisecond, 900 * time.Millisecond}

// listPage keeps one answer of a listing small; a record may have half a MiB.
const listPage = 200

// Etcd keeps records in etcd.
type Etcd struct {
	cl     *clientv3.Client
	prefix string
}

// NewEtcd keeps records below prefix, which ends in "/".
func NewEtcd(cl *Client, prefix string) *Etcd { return &Etcd{cl: cl, prefix: prefix} }

func (s *Etcd) placement(id string) string { return s.prefix + "placements/" + id }
func (s *Etcd) request(id string) string   { return s.prefix + "requests/" + id }

// Create puts a record and its request key in one transaction, if neither exists.
// With ErrRequestTaken comes the record that the request id names.
func (s *Etcd) Create(ctx context.Context, r Record, f Fence) (Record, error) {
	raw, err := encode(r)
	if err != nil {
		return Record{}, err
	}
	key := s.placement(r.ID)
	conds := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}
	puts := []clientv3.Op{clientv3.OpPut(key, string(raw))}
	if r.Request.ID != "" {
		conds = append(conds, clientv3.Compare(clientv3.CreateRevision(s.request(r.Request.ID)), "=", 0))
		puts = append(puts, clientv3.OpPut(s.request(r.Request.ID), r.ID))
	}
	resp, err := s.txn(ctx, conds, f, puts, clientv3.OpGet(key), clientv3.OpGet(s.request(r.Request.ID)))
	if err != nil {
		return Record{}, err
	}
	if resp.Succeeded {
		r.Revision = resp.Header.Revision
		return r, nil
	}
	have, taken := resp.Responses[0].GetResponseRange().Kvs, resp.Responses[1].GetResponseRange().Kvs
	switch {
	case len(have) > 0 && bytes.Equal(have[0].Value, raw):
		return decode(have[0].Value, have[0].ModRevision)
	case r.Request.ID != "" && len(taken) > 0 && string(taken[0].Value) != r.ID:
		other, err := s.Get(ctx, string(taken[0].Value))
		if err != nil {
			return Record{}, err // gone meanwhile: the caller may try again
		}
		return other, ErrRequestTaken
	case len(have) > 0:
		return Record{}, ErrExists
	}
	return Record{}, ErrFenced
}

// Update replaces the record that was read at r.Revision.
func (s *Etcd) Update(ctx context.Context, r Record, f Fence) (Record, error) {
	raw, err := encode(r)
	if err != nil {
		return Record{}, err
	}
	key := s.placement(r.ID)
	// A missing key has revision 0: without the second condition an update creates it.
	conds := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", r.Revision), clientv3.Compare(clientv3.CreateRevision(key), ">", 0)}
	resp, err := s.txn(ctx, conds, f, []clientv3.Op{clientv3.OpPut(key, string(raw))}, clientv3.OpGet(key))
	if err != nil {
		return Record{}, err
	}
	if resp.Succeeded {
		r.Revision = resp.Header.Revision
		return r, nil
	}
	have := resp.Responses[0].GetResponseRange().Kvs
	switch {
	case len(have) == 0:
		return Record{}, ErrNotFound
	case have[0].ModRevision == r.Revision:
		return Record{}, ErrFenced
	case bytes.Equal(have[0].Value, raw): // the first try was applied after all
		if err := s.onlyIfFenced(ctx, f); err != nil {
			return Record{}, err
		}
		return decode(have[0].Value, have[0].ModRevision)
	}
	return Record{}, s.whyLost(ctx, f)
}

// Delete removes the record that was read at r.Revision, and its request keys.
// Deleting what is gone succeeds.
func (s *Etcd) Delete(ctx context.Context, r Record, f Fence) error {
	key := s.placement(r.ID)
	dels := []clientv3.Op{clientv3.OpDelete(key)}
	for _, id := range r.requests() {
		dels = append(dels, clientv3.OpDelete(s.request(id)))
	}
	resp, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", r.Revision)}, f, dels, clientv3.OpGet(key))
	if err != nil || resp.Succeeded {
		return err
	}
	have := resp.Responses[0].GetResponseRange().Kvs
	switch {
	case len(have) == 0:
		return s.onlyIfFenced(ctx, f)
	case have[0].ModRevision == r.Revision:
		return ErrFenced
	}
	return s.whyLost(ctx, f)
}

// Get reads one record, linearizably: what has been written is seen.
func (s *Etcd) Get(ctx context.Context, id string) (Record, error) {
	return s.get(ctx, s.placement(id))
}

// ByRequest reads the record that a request id names.
func (s *Etcd) ByRequest(ctx context.Context, requestID string) (Record, error) {
	resp, err := s.read(ctx, s.request(requestID))
	if err != nil {
		return Record{}, err
	}
	if len(resp.Kvs) == 0 {
		return Record{}, ErrNotFound
	}
	return s.Get(ctx, string(resp.Kvs[0].Value))
}

func (s *Etcd) get(ctx context.Context, key string) (Record, error) {
	resp, err := s.read(ctx, key)
	if err != nil {
		return Record{}, err
	}
	if len(resp.Kvs) == 0 {
		return Record{}, ErrNotFound
	}
	return decode(resp.Kvs[0].Value, resp.Kvs[0].ModRevision)
}

// List reads every record, by id, page by page at one revision.
func (s *Etcd) List(ctx context.Context) ([]Record, error) {
	all, _, err := s.list(ctx)
	return all, err
}

func (s *Etcd) list(ctx context.Context) (all []Record, rev int64, err error) {
	from, end := s.placement(""), clientv3.GetPrefixRangeEnd(s.placement(""))
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(listPage)}
		if rev != 0 {
			opts = append(opts, clientv3.WithRev(rev))
		}
		resp, err := s.read(ctx, from, opts...)
		if err != nil {
			return nil, 0, err
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			r, err := decode(kv.Value, kv.ModRevision)
			if err != nil {
				return nil, 0, fmt.Errorf("read %s: %w", kv.Key, err)
			}
			all = append(all, r)
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return all, rev, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// Ping reports whether etcd answers with a quorum.
func (s *Etcd) Ping(ctx context.Context) error {
	_, err := s.read(ctx, s.prefix+"ping", clientv3.WithKeysOnly())
	return err
}

// call makes a call, and makes it again if the first try took too long. So every call
// must bear to be made twice: reads do, and transactions say whether they are in place.
func (s *Etcd) call(ctx context.Context, do func(context.Context) error) (err error) {
	for _, t := range tryTimes {
		try, cancel := context.WithTimeout(ctx, t)
		err = do(try)
		late := try.Err() != nil
		cancel()
		if err == nil || ctx.Err() != nil || !late {
			break
		}
	}
	return s.explain(ctx, err)
}

func (s *Etcd) read(ctx context.Context, key string, opts ...clientv3.OpOption) (resp *clientv3.GetResponse, err error) {
	err = s.call(ctx, func(ctx context.Context) (err error) {
		resp, err = s.cl.Get(ctx, key, opts...)
		return err
	})
	return resp, err
}

func (s *Etcd) txn(ctx context.Context, conds []clientv3.Cmp, f Fence, then []clientv3.Op, otherwise ...clientv3.Op) (*clientv3.TxnResponse, error) {
	if f != NoFence {
		conds = append(conds, clientv3.Compare(clientv3.CreateRevision(f.Key), "=", f.Rev))
	}
	var resp *clientv3.TxnResponse
	err := s.call(ctx, func(ctx context.Context) (err error) {
		resp, err = s.cl.Txn(ctx).If(conds...).Then(then...).Else(otherwise...).Commit()
		return err
	})
	return resp, err
}

// whyLost says which condition of a lost transaction did not hold: a writer that
// lost the election should stop, one that lost a race should read again.
func (s *Etcd) whyLost(ctx context.Context, f Fence) error {
	if err := s.onlyIfFenced(ctx, f); err != nil {
		return err
	}
	return ErrChanged
}

func (s *Etcd) onlyIfFenced(ctx context.Context, f Fence) error {
	if f == NoFence {
		return nil
	}
	resp, err := s.read(ctx, f.Key)
	if err != nil {
		return err
	}
	if len(resp.Kvs) == 0 || resp.Kvs[0].CreateRevision != f.Rev {
		return ErrFenced
	}
	return nil
}

// explain turns an error of etcd into a refusal that says what to do. The caller's
// own cancellation stays what it is.
func (s *Etcd) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	at := strings.Join(s.cl.Endpoints(), ", ")
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return placement.Errorf(placement.CodeUnavailable, "write to etcd (%s): its database is full", at).
			WithHint("compact and defragment it, then `etcdctl alarm disarm`; running models are not touched")
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrInvalidAuthToken):
		return placement.Errorf(placement.CodeUnavailable, "reach etcd (%s): %v", at, err).
			WithHint("check the coordinator's etcd user and its role on %s", s.prefix)
	}
	return placement.Errorf(placement.CodeUnavailable, "reach etcd (%s): %s", at, rpctypes.ErrorDesc(err)).
		WithHint("check etcd: placing needs it; running models, capacity and nodes do not")
}
