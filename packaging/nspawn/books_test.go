package nspawn

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"warmd/packaging/nspawn/host"
	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

// The fleet is a load.Placer: each call goes to the next coordinator, as clients do
// that know all of them.

// patience is how long a client goes on asking, tryTime how long it waits for one coordinator.
const (
	patience = 2 * time.Minute
	tryTime  = 5 * time.Second
)

// Place asks the next coordinator.
func (f *fleet) Place(ctx context.Context, r placement.Request) (placement.Placement, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	p, err := f.next().coordinatorTCP.Place(ctx, r, "ready", nil)
	return p, sure(err)
}

// Release asks the next coordinator.
func (f *fleet) Release(ctx context.Context, id string) (placement.Placement, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	p, err := f.next().coordinatorTCP.Release(ctx, id, 0)
	return p, sure(err)
}

// sure says in the coordinators' own words that one of them did not answer in time.
func sure(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return placement.Errorf(placement.CodeUnavailable, "no answer within %s", tryTime)
	}
	return err
}

func (f *fleet) next() *node { return f.nodes[int(f.turn.Add(1))%len(f.nodes)] }

// prove holds a stream of placements against the books, once they agree or 15
// seconds have passed, and prints what was lost and doubled. Then it empties the fleet.
func (f *fleet) prove(t testing.TB, name string, told []*load.Told) {
	t.Helper()
	require.NotEmpty(t, told)
	var v load.Verdict
	var books load.Books
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		books = f.books(t, told)
		if v = load.Proof(books); v.OK() || time.Now().After(end) {
			break
		}
	}
	figure("placements_asked_"+name, len(told))
	figure("placements_lost_"+name, len(v.Lost))
	figure("placements_doubled_"+name, len(v.Doubled))
	f.made, f.lost, f.doubled = f.made+len(told), f.lost+len(v.Lost), f.doubled+len(v.Doubled)
	assert.Empty(t, v.Lost)
	assert.Empty(t, v.Doubled)
	assert.Empty(t, v.Wrong)
	f.empty(t)
}

// books asks everybody: etcd itself, each agent, and the machine which engines run.
func (f *fleet) books(t testing.TB, told []*load.Told) load.Books {
	t.Helper()
	b := load.Books{Told: told, Records: f.records(t), Held: map[string][]placement.Placement{}, Engines: map[string][]string{}}
	for _, n := range f.nodes {
		held, err := n.agent.Placements(t.Context())
		require.NoError(t, err)
		b.Held[n.Name] = held
		for _, p := range engines(t, n.Host) {
			b.Engines[n.Name] = append(b.Engines[n.Name], served(p))
		}
	}
	return b
}

// records are those in etcd whose request id is one of this fleet's streams.
func (f *fleet) records(t testing.TB) (all []placement.Placement) {
	t.Helper()
	got, err := f.kv.Get(t.Context(), "/warmd/placements/", clientv3.WithPrefix())
	require.NoError(t, err)
	for _, kv := range got.Kvs {
		var p placement.Placement
		require.NoError(t, json.Unmarshal(kv.Value, &p))
		all = append(all, p)
	}
	return all
}

// engines are the processes of the test engine on a host.
func engines(t testing.TB, h *host.Host) []host.Process {
	return h.Processes(t, func(p host.Process) bool { return slices.Contains(p.Args, enginePath) && served(p) != "" })
}

// served is the name of the model that an engine serves.
func served(p host.Process) string {
	if i := slices.Index(p.Args, "--name"); i >= 0 && i+1 < len(p.Args) {
		return p.Args[i+1]
	}
	return ""
}

// empty releases everything and waits for it.
func (f *fleet) empty(t testing.TB) {
	t.Helper()
	host.Until(t, 30*time.Second, "the fleet is empty", func() error {
		all, err := f.nodes[0].coordinator.Placements(t.Context(), false)
		if err != nil {
			return err
		}
		for _, p := range all {
			_, err = f.Release(t.Context(), p.ID)
		}
		if len(all) > 0 {
			return errors.Join(errors.New("some are left"), err)
		}
		return nil
	})
}
