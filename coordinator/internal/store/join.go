package store

import (
	"context"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// maxAliases bounds the request ids that one record answers besides its own; the
// oldest is forgotten.
const maxAliases = 64

// joined is the record with one more request id, and the ids that it lost for it.
func (r Record) joined(requestID string) (Record, []string) {
	r.Aliases = append(slices.Clone(r.Aliases), requestID)
	over := max(0, len(r.Aliases)-maxAliases)
	lost := r.Aliases[:over]
	r.Aliases = r.Aliases[over:]
	return r, lost
}

// requests are all request ids that name the record.
func (r Record) requests() []string {
	if r.Request.ID == "" {
		return r.Aliases
	}
	return append([]string{r.Request.ID}, r.Aliases...)
}

// Join makes another request id name the record that was read at r.Revision, in one
// transaction. ErrRequestTaken: it names another one already.
func (s *Etcd) Join(ctx context.Context, r Record, requestID string) (Record, error) {
	next, lost := r.joined(requestID)
	raw, err := encode(next)
	if err != nil {
		return Record{}, err
	}
	key, name := s.placement(r.ID), s.request(requestID)
	ops := []clientv3.Op{clientv3.OpPut(key, string(raw)), clientv3.OpPut(name, r.ID)}
	for _, id := range lost {
		ops = append(ops, clientv3.OpDelete(s.request(id)))
	}
	conds := []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(key), "=", r.Revision), clientv3.Compare(clientv3.CreateRevision(key), ">", 0),
		clientv3.Compare(clientv3.CreateRevision(name), "=", 0),
	}
	resp, err := s.txn(ctx, conds, NoFence, ops, clientv3.OpGet(name))
	if err != nil {
		return Record{}, err
	}
	if resp.Succeeded {
		next.Revision = resp.Header.Revision
		return next, nil
	}
	switch taken := resp.Responses[0].GetResponseRange().Kvs; {
	case len(taken) == 0:
		return Record{}, ErrChanged
	case string(taken[0].Value) != r.ID:
		return Record{}, ErrRequestTaken
	}
	return s.Get(ctx, r.ID) // the first try was applied after all
}

// Join makes another request id name a record.
func (m *Mem) Join(ctx context.Context, r Record, requestID string) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, lost := r.joined(requestID)
	raw, err := m.enter(ctx, next, NoFence)
	if err != nil {
		return Record{}, err
	}
	have, ok := m.records[r.ID]
	id, taken := m.requests[requestID]
	switch {
	case taken && id == r.ID:
		return decode(have.raw, have.rev)
	case taken:
		return Record{}, ErrRequestTaken
	case !ok || have.rev != r.Revision:
		return Record{}, ErrChanged
	}
	m.requests[requestID] = r.ID
	for _, id := range lost {
		delete(m.requests, id)
	}
	return m.put(r.ID, raw)
}
