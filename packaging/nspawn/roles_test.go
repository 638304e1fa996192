package nspawn

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"warmd/packaging/nspawn/host"
)

// others are the hosts of the fleet without one.
func (f *fleet) others(n *node) (all []*host.Host) {
	for _, o := range f.without(n) {
		all = append(all, o.Host)
	}
	return all
}

func (f *fleet) without(n *node) (all []*node) {
	for _, o := range f.nodes {
		if o != n {
			all = append(all, o)
		}
	}
	return all
}

// leader is the node whose coordinator is elected, by etcd.
func (f *fleet) leader(t testing.TB) (found *node) {
	t.Helper()
	host.Until(t, 20*time.Second, "a coordinator is elected", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got, err := f.kv.Get(ctx, "/warmd/leader/", clientv3.WithFirstCreate()...)
		if err != nil || len(got.Kvs) == 0 {
			return errors.Join(errors.New("none"), err)
		}
		for _, n := range f.nodes {
			if string(got.Kvs[0].Value) == n.Name+"-coordinator" {
				found = n
				return nil
			}
		}
		return fmt.Errorf("%s is on no host", got.Kvs[0].Value)
	})
	return found
}

// after is the node after another, in a ring.
func (f *fleet) after(n *node) *node {
	for i, o := range f.nodes {
		if o == n {
			return f.nodes[(i+1)%len(f.nodes)]
		}
	}
	return nil
}

// etcdLeader is the node whose member of etcd leads.
func (f *fleet) etcdLeader(t testing.TB) (found *node) {
	t.Helper()
	host.Until(t, 20*time.Second, "etcd has a leader", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for i, n := range f.nodes {
			st, err := f.kv.Status(ctx, f.etcd.endpoints()[i])
			if err != nil {
				return err
			}
			if st.Leader == st.Header.MemberId {
				found = n
				return nil
			}
		}
		return fmt.Errorf("none of %d leads", len(f.nodes))
	})
	return found
}

// etcdWithin is how long etcd may take to be whole again. A link between two members that
// was cut may stay silent for as long as it was, once more, since TCP waits ever longer
// before it tries again; etcd gets on without it, unless a second member goes.
const etcdWithin = time.Minute

// etcdWhole waits until every two members of etcd hear each other, so that the next
// fault comes alone: two at a time are the loss of its quorum, which is another test. It
// leaves the lead on a node.
func (f *fleet) etcdWhole(t testing.TB, leading *node) {
	t.Helper()
	for _, lead := range []*node{f.after(leading), leading} { // each pair has one of them
		f.etcdLeadOn(t, lead)
		for _, n := range f.nodes {
			kv := f.etcd.client(t, n)
			host.Until(t, etcdWithin, "the member of etcd on "+n.Name+" hears "+lead.Name, func() error {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := kv.Get(ctx, "/warmd/ping")
				return err
			})
			_ = kv.Close()
		}
	}
}

// etcdLeadOn makes the member of a node lead.
func (f *fleet) etcdLeadOn(t testing.TB, n *node) {
	t.Helper()
	host.Until(t, etcdWithin, "etcd's leader has moved", func() error {
		now := f.etcdLeader(t)
		if now == n {
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		list, err := f.kv.MemberList(ctx)
		if err != nil {
			return err
		}
		for _, m := range list.Members {
			if m.Name == n.Name {
				cl := f.etcd.client(t, now)
				defer cl.Close()
				_, err = cl.MoveLeader(ctx, m.ID)
			}
		}
		return errors.Join(fmt.Errorf("it leads on %s", now.Name), err)
	})
}

// signaller finds the process of a unit now, so that it can be signalled at once.
func (n *node) signaller(t testing.TB, unit string) func(syscall.Signal) time.Time {
	t.Helper()
	found := n.Processes(t, func(p host.Process) bool { return p.Cgroup == "/system.slice/"+unit })
	require.Len(t, found, 1, "processes of %s on %s", unit, n.Name)
	return func(s syscall.Signal) time.Time {
		if err := syscall.Kill(found[0].Pid, s); err != nil {
			t.Errorf("signal %s on %s: %v", unit, n.Name, err)
		}
		return time.Now()
	}
}

// dropIn changes a unit until the end of the test.
func (n *node) dropIn(t testing.TB, unit, lines string) {
	t.Helper()
	dir := "/run/systemd/system/" + unit + ".d"
	n.Write(t, dir+"/test.conf", strings.TrimSpace(lines)+"\n", 0o644)
	n.Run(t, "systemctl daemon-reload")
	t.Cleanup(func() { n.Run(t, "rm -r "+dir+"; systemctl daemon-reload") })
}
