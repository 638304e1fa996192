package nspawn

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"warmd/placement"
)

// history is every change of a record in etcd, with the time when the test heard of it.
type history struct {
	mu      sync.Mutex
	changes map[string][]change // by placement id, in order
}

type change struct {
	at    time.Time
	owner string
	placement.Placement
}

// watch writes the history until the end of the test. It asks only the members that
// are named, if any: one that is cut off from the others tells no news, and says nothing.
func (f *fleet) watch(t *testing.T, members ...*node) *history {
	h := &history{changes: map[string][]change{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	kv := f.etcd.client(t, members...)
	t.Cleanup(func() { cancel(); <-done; _ = kv.Close() })
	changes := kv.Watch(ctx, "/warmd/placements/", clientv3.WithPrefix(), clientv3.WithFilterDelete())
	go func() {
		defer close(done)
		for resp := range changes {
			for _, ev := range resp.Events {
				h.add(t, ev.Kv.Value)
			}
		}
	}()
	return h
}

func (h *history) add(t *testing.T, raw []byte) {
	var r struct {
		placement.Placement
		Owner string `json:"owner"`
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Error(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changes[r.ID] = append(h.changes[r.ID], change{time.Now(), r.Owner, r.Placement})
}

// takeovers are the times from a fault of a node's coordinator until each placement
// that it left unfinished has another owner; orphans is how many have none yet.
func (h *history) takeovers(n *node, fault time.Time) (took []time.Duration, orphans int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, all := range h.changes {
		var left *change
		for i, c := range all {
			switch {
			case c.at.Before(fault):
				left = &all[i]
			case left == nil || left.State != placement.Assigned || !left.by(n):
			case c.owner != left.owner:
				took = append(took, c.at.Sub(fault))
				left = nil
			case c.State != placement.Assigned:
				left = nil // written just before the fault, heard of after it
			}
		}
		if left != nil && left.State == placement.Assigned && left.by(n) {
			orphans++
		}
	}
	return took, orphans
}

// by reports whether a coordinator of this node owns the record, in any of its lives.
func (c change) by(n *node) bool { return strings.HasPrefix(c.owner, n.Name+"-coordinator.") }

// zombieWrites counts records that somebody wrote as their owner after another one had
// become it.
func (h *history) zombieWrites() (count int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, all := range h.changes {
		former := map[string]bool{}
		for i, c := range all {
			if i > 0 && c.owner != all[i-1].owner {
				former[all[i-1].owner] = true
			}
			if former[c.owner] {
				count++
			}
		}
	}
	return count
}
