package sweep

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A leader of etcd that has just been elected knows of no renewal, and so grants every
// lease its whole time anew, and an election's more (lessor.Promote). Whoever lost etcd's
// leader and a coordinator in one moment, as with their host, would wait twice for the dead.
//
// So each term of etcd begins with a roll call. The value of coordinators/<instance> ends
// in a term, and
//
//	term(i) = the last term of etcd's that coordinator i saw while its lease lived
//
// Everybody renews its lease every TTL/10 and reads the term off the answer, and so writes
// the new one soon. Who has not when another has waited TTL*2/5 since it did so itself is
// taken for dead, and its lease is revoked. A mistake costs a coordinator its lease and
// nothing else: it stands again, and what it writes meanwhile is fenced.

// standing is what a coordinator writes of itself. The name has no space.
func (e *Election) standing(term uint64) string { return fmt.Sprintf("%s %d", e.Name, term) }

// termOf reads the term of a standing; a coordinator of an older version writes none, and
// is not called.
func termOf(standing string) (term uint64, ok bool) {
	_, s, _ := strings.Cut(standing, " ")
	term, err := strconv.ParseUint(s, 10, 64)
	return term, err == nil
}

// answerRolls answers for a lease in each new term, and calls the others after it, until
// ctx ends. The terms are those that renewals saw; the lease was granted in the first, whose
// roll is called, too: all leases of before an outage may be those of the dead.
func (e *Election) answerRolls(ctx context.Context, lease clientv3.LeaseID, first uint64, terms <-chan uint64) {
	answered, due := first, time.After(e.ttl()*2/5)
	for {
		select {
		case <-ctx.Done():
			return
		case term := <-terms:
			if term > answered && e.answer(ctx, lease, term) == nil { // or at the next renewal
				answered, due = term, time.After(e.ttl()*2/5)
			}
		case <-due:
			due = nil
			if err := e.callRoll(ctx, lease, answered); err != nil {
				due = time.After(e.ttl() / 10)
			}
		}
	}
}

// answer says that the holder of a lease lives in a term. It fails before the holder has
// registered.
func (e *Election) answer(ctx context.Context, lease clientv3.LeaseID, term uint64) error {
	key := e.Prefix + "coordinators/" + e.Instance
	return e.ask(ctx, func(ctx context.Context) error {
		got, err := e.Client.Txn(ctx).If(clientv3.Compare(clientv3.LeaseValue(key), "=", lease)).
			Then(clientv3.OpPut(key, e.standing(term), clientv3.WithLease(lease))).Commit()
		if err == nil && !got.Succeeded {
			return errors.New("not registered")
		}
		return err
	})
}

// callRoll revokes the leases of all who did not answer in a term. It does nothing when
// that term is over: the next one has a roll call of its own.
func (e *Election) callRoll(ctx context.Context, own clientv3.LeaseID, term uint64) error {
	got, err := e.read(ctx, "coordinators/", clientv3.WithPrefix())
	if err != nil || got.Header.RaftTerm != term {
		return err
	}
	var errs []error
	for _, kv := range got.Kvs {
		lease := clientv3.LeaseID(kv.Lease)
		if was, ok := termOf(string(kv.Value)); !ok || was >= term || lease == own {
			continue
		}
		e.Log.Warn("a coordinator is silent since etcd has a new leader: its lease is revoked", "instance", path.Base(string(kv.Key)), "term", term)
		errs = append(errs, e.revoke(ctx, lease))
	}
	return errors.Join(errs...)
}
