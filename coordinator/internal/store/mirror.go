package store

import (
	"context"
	"sort"
	"sync"
)

// Mirror remembers every record, fed by a store's changes. It is behind etcd by
// milliseconds, or by as long as etcd is away: a hint like every view. Whoever acts on
// it writes by compare-and-set, which notices.
type Mirror struct {
	mu      sync.Mutex
	records map[string]Record
	rev     int64
	waiting map[string]chan struct{} // by id: closed when the record changes
}

// NewMirror makes an empty mirror.
func NewMirror() *Mirror {
	return &Mirror{records: map[string]Record{}, waiting: map[string]chan struct{}{}}
}

// Run keeps the mirror fresh until ctx ends.
func (m *Mirror) Run(ctx context.Context, s interface {
	Follow(ctx context.Context, each func(Change)) error
}) error {
	return s.Follow(ctx, m.take)
}

func (m *Mirror) take(c Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev = max(m.rev, c.Revision)
	switch {
	case c.Reset:
		clear(m.records)
		for _, r := range c.All {
			m.records[r.ID] = r
		}
		for id := range m.waiting {
			m.wake(id)
		}
	case c.Put != nil:
		m.records[c.Put.ID] = *c.Put
		m.wake(c.Put.ID)
	default:
		delete(m.records, c.Deleted)
		m.wake(c.Deleted)
	}
}

func (m *Mirror) wake(id string) {
	if ch := m.waiting[id]; ch != nil {
		close(ch)
		delete(m.waiting, id)
	}
}

// All is every record, by id.
func (m *Mirror) All() []Record {
	m.mu.Lock()
	all := make([]Record, 0, len(m.records))
	for _, r := range m.records {
		all = append(all, r)
	}
	m.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].ID < all[j].ID })
	return all
}

// Await returns once the record is newer than rev, or
// gone. A record that we have not heard of yet is not gone.
func (m *Mirror) Await(ctx context.Context, id string, rev int64) (Record, error) {
	for {
		m.mu.Lock()
		r, have := m.records[id]
		switch {
		case have && r.Revision > rev:
			m.mu.Unlock()
			return r, nil
		case !have && m.rev > rev:
			m.mu.Unlock()
			return Record{}, ErrNotFound
		}
		ch := m.waiting[id]
		if ch == nil {
			ch = make(chan struct{})
			m.waiting[id] = ch
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return Record{}, ctx.Err()
		case <-ch:
		}
	}
}
