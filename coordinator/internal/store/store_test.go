package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"warmd/coordinator/internal/store"
	"warmd/coordinator/internal/store/storetest"
	"warmd/placement"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.etcd.io/etcd/pkg/v3/schedule.(*fifo).run"),
		goleak.IgnoreTopFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"))
}

func TestMemKeepsTheContract(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Harness {
		m := store.NewMem()
		return storetest.Harness{Store: m, Lead: m.Lead, Depose: func(f store.Fence) { m.Depose(f.Key) }, Compact: m.Compact}
	})
}

func TestEtcdKeepsTheContract(t *testing.T) {
	srv := storetest.StartEtcd(t)
	cl := srv.Client()
	n := 0
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		n++
		prefix := fmt.Sprintf("/warmd-%d/", n)
		return storetest.Harness{
			Store: store.NewEtcd(cl, prefix),
			Lead: func(name string) store.Fence {
				resp, err := cl.Put(t.Context(), prefix+name, "x")
				require.NoError(t, err)
				return store.Fence{Key: prefix + name, Rev: resp.Header.Revision}
			},
			Depose: func(f store.Fence) {
				_, err := cl.Delete(t.Context(), f.Key)
				require.NoError(t, err)
			},
			Compact: func() {
				resp, err := cl.Get(t.Context(), "x")
				require.NoError(t, err)
				_, err = cl.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical())
				require.NoError(t, err)
			},
		}
	})
}

// With etcd gone a caller gets an answer, and one it can act on. That it has it within
// 2 s is held on the hosts of packaging/nspawn: here the machine may be busy.
func TestEtcdDownIsRefusedFastWithAHint(t *testing.T) {
	srv := storetest.StartEtcd(t)
	s := store.NewEtcd(srv.Client(), "/w/")
	rec, err := s.Create(t.Context(), storetest.Record("p-1", "req-1"), store.NoFence)
	require.NoError(t, err)
	srv.Stop()
	begin := time.Now()
	_, err = s.Create(t.Context(), storetest.Record("p-2", "req-2"), store.NoFence)
	assert.Less(t, time.Since(begin), 10*time.Second)
	e, ok := errors.AsType[*placement.Error](err)
	require.True(t, ok, "%v", err)
	assert.Equal(t, placement.CodeUnavailable, e.Code)
	assert.Contains(t, e.Hint, "etcd")

	srv.Up()
	require.Eventually(t, func() bool { return s.Ping(t.Context()) == nil }, 10*time.Second, 20*time.Millisecond)
	read, err := s.Get(t.Context(), "p-1")
	require.NoError(t, err)
	assert.Equal(t, rec, read, "an acknowledged record outlives the server")
}

// A follower outlives the server: after a restart it is told what changed.
func TestFollowerOutlivesTheServer(t *testing.T) {
	srv := storetest.StartEtcd(t)
	s := store.NewEtcd(srv.Client(), "/w/")
	ctx, cancel := context.WithCancel(t.Context())
	seen, done := make(chan string, 64), make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Follow(ctx, func(c store.Change) {
			for _, r := range c.All {
				seen <- r.ID
			}
			if c.Put != nil {
				seen <- c.Put.ID
			}
		})
	}()
	defer func() { cancel(); <-done }()
	_, err := s.Create(ctx, storetest.Record("p-1", ""), store.NoFence)
	require.NoError(t, err)
	require.Equal(t, "p-1", <-seen)
	srv.Stop()
	srv.Up()
	require.Eventually(t, func() bool {
		_, err := s.Create(ctx, storetest.Record("p-2", ""), store.NoFence)
		return err == nil
	}, 10*time.Second, 20*time.Millisecond)
	require.Eventually(t, func() bool {
		select {
		case id := <-seen:
			return id == "p-2"
		default:
			return false
		}
	}, 10*time.Second, 5*time.Millisecond)
}
