package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"sync"
)

// Mem keeps records in memory with etcd's promises: the store of tests, and the
// model that the contract suite holds etcd against. Leaders are made by hand.
type Mem struct {
	mu       sync.Mutex
	rev      int64
	records  map[string]memRecord
	requests map[string]string
	fences   map[string]int64
	history  []Change
	grew     chan struct{}
	down     error
}

type memRecord struct {
	raw []byte
	rev int64
}

// NewMem makes an empty store.
func NewMem() *Mem {
	return &Mem{records: map[string]memRecord{}, requests: map[string]string{}, fences: map[string]int64{}, grew: make(chan struct{})}
}

// Lead creates an election key, as an elected leader does, and returns its fence.
func (m *Mem) Lead(key string) Fence {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	m.fences[key] = m.rev
	return Fence{key, m.rev}
}

// Depose deletes an election key, as an expired lease does.
func (m *Mem) Depose(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	delete(m.fences, key)
}

// Fail makes every call return err until it is called with nil: etcd is down.
func (m *Mem) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = err
}

// Compact forgets the history, so that a slow follower starts over.
func (m *Mem) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.history = nil
}

// Create puts a record and its request key, if neither exists.
func (m *Mem) Create(ctx context.Context, r Record, f Fence) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	raw, err := m.enter(ctx, r, f)
	if err != nil {
		return Record{}, err
	}
	if have, ok := m.records[r.ID]; ok {
		if bytes.Equal(have.raw, raw) {
			return decode(have.raw, have.rev)
		}
		if id := m.requests[r.Request.ID]; r.Request.ID == "" || id == "" || id == r.ID {
			return Record{}, ErrExists
		}
	}
	if id, ok := m.requests[r.Request.ID]; ok && r.Request.ID != "" {
		have, err := decode(m.records[id].raw, m.records[id].rev)
		if err != nil {
			return Record{}, err
		}
		return have, ErrRequestTaken
	}
	if r.Request.ID != "" {
		m.requests[r.Request.ID] = r.ID
	}
	return m.put(r.ID, raw)
}

// Update replaces the record that was read at r.Revision.
func (m *Mem) Update(ctx context.Context, r Record, f Fence) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	raw, err := m.enter(ctx, r, f)
	if err != nil {
		return Record{}, err
	}
	have, ok := m.records[r.ID]
	switch {
	case !ok:
		return Record{}, ErrNotFound
	case have.rev == r.Revision:
		return m.put(r.ID, raw)
	case bytes.Equal(have.raw, raw):
		return decode(have.raw, have.rev)
	}
	return Record{}, ErrChanged
}

// Delete removes the record that was read at r.Revision, and its request keys.
func (m *Mem) Delete(ctx context.Context, r Record, f Fence) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.enter(ctx, r, f); err != nil {
		return err
	}
	have, ok := m.records[r.ID]
	if !ok {
		return nil
	}
	if have.rev != r.Revision {
		return ErrChanged
	}
	delete(m.records, r.ID)
	for _, id := range r.requests() {
		if m.requests[id] == r.ID {
			delete(m.requests, id)
		}
	}
	m.rev++
	m.publish(Change{Deleted: r.ID, Revision: m.rev})
	return nil
}

// Get reads one record.
func (m *Mem) Get(ctx context.Context, id string) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(ctx); err != nil {
		return Record{}, err
	}
	have, ok := m.records[id]
	if !ok {
		return Record{}, ErrNotFound
	}
	return decode(have.raw, have.rev)
}

// ByRequest reads the record that a request id names.
func (m *Mem) ByRequest(ctx context.Context, requestID string) (Record, error) {
	m.mu.Lock()
	id, ok := m.requests[requestID]
	err := m.usable(ctx)
	m.mu.Unlock()
	if err != nil {
		return Record{}, err
	}
	if !ok {
		return Record{}, ErrNotFound
	}
	return m.Get(ctx, id)
}

// List reads every record, by id.
func (m *Mem) List(ctx context.Context) ([]Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(ctx); err != nil {
		return nil, err
	}
	return m.list()
}

// Ping reports whether the store answers.
func (m *Mem) Ping(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.usable(ctx)
}

// Follow tells each the whole state, then every change, until ctx ends.
func (m *Mem) Follow(ctx context.Context, each func(Change)) error {
	seen := int64(-1)
	for {
		m.mu.Lock()
		var news []Change
		if err := m.usable(ctx); err == nil && seen != m.rev {
			if seen < 0 || len(m.history) == 0 || m.history[0].Revision > seen+1 {
				all, err := m.list()
				if err != nil {
					m.mu.Unlock()
					return err
				}
				news = []Change{{Reset: true, All: all, Revision: m.rev}}
			} else {
				for _, c := range m.history {
					if c.Revision > seen {
						news = append(news, c)
					}
				}
			}
			seen = m.rev
		}
		grew := m.grew
		m.mu.Unlock()
		for _, c := range news {
			each(c)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-grew:
		}
	}
}

func (m *Mem) usable(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return m.down
}

// enter checks what every write checks.
func (m *Mem) enter(ctx context.Context, r Record, f Fence) ([]byte, error) {
	if err := m.usable(ctx); err != nil {
		return nil, err
	}
	if f != NoFence && m.fences[f.Key] != f.Rev {
		return nil, ErrFenced
	}
	return encode(r)
}

func (m *Mem) put(id string, raw []byte) (Record, error) {
	m.rev++
	m.records[id] = memRecord{raw, m.rev}
	r, err := decode(raw, m.rev)
	if err != nil {
		return Record{}, err
	}
	m.publish(Change{Put: &r, Revision: m.rev})
	return r, nil
}

func (m *Mem) publish(c Change) {
	m.history = append(m.history, c)
	close(m.grew)
	m.grew = make(chan struct{})
}

func (m *Mem) list() ([]Record, error) {
	all := make([]Record, 0, len(m.records))
	for _, have := range m.records {
		r, err := decode(have.raw, have.rev)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].ID < all[j].ID })
	return all, nil
}

func encode(r Record) ([]byte, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode record %s: %w", r.ID, err)
	}
	return raw, nil
}

func decode(raw []byte, rev int64) (Record, error) {
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return Record{}, fmt.Errorf("decode record: %w", err)
	}
	r.Revision = rev
	return r, nil
}
