package gossip

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func key(b byte) []byte { return slices.Repeat([]byte{b}, 32) }

// lines gathers log lines of several members.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(p))
	return len(p), nil
}

func (l *lines) with(words ...string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) }) {
			out = append(out, line)
		}
	}
	return out
}

// Members take each step some time apart, as hosts do, while capacity flows.
func TestAFleetChangesItsKeyAndLosesNothing(t *testing.T) {
	inBubble(t, func(f *fleet) {
		old, fresh := key(1), key(2)
		said := &lines{}
		f.keys, f.log = [][]byte{old}, slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug}))
		names := f.startNodes(3)
		coordinator := f.start("coordinator", true)
		f.awaitAll(time.Minute, "all members", alive(4))
		time.Sleep(10 * time.Second) // what joining at the same moment repeats

		stop := make(chan struct{})
		var watching sync.WaitGroup
		for name, m := range f.members {
			watching.Go(func() {
				for {
					select {
					case <-m.Changed():
						assert.True(t, alive(4)(m.Members()), "%s sees %s", name, describe(m.Members()))
					case <-stop:
						return
					}
				}
			})
		}
		flow := func(d time.Duration) { // every second each node says something new, and it arrives
			for range d / time.Second {
				for _, name := range names {
					c := clone(f.members[name].latest())
					c.Generation++
					c.Devices[0].Free, c.Devices[0].Busy = c.Devices[0].Busy, c.Devices[0].Free
					f.members[name].SetCapacity(c)
				}
				time.Sleep(time.Second)
				for _, name := range names {
					got, want := node(coordinator.Members(), name), f.members[name].latest()
					assert.Equal(t, want.Generation, got.Generation, name)
				}
			}
		}
		for _, keys := range [][][]byte{{old, fresh}, {fresh, old}, {fresh}} {
			for _, m := range f.members {
				require.NoError(t, m.SetKeys(keys))
				flow(5 * time.Second)
			}
			flow(30 * time.Second)
		}
		close(stop)
		watching.Wait()
		assert.Empty(t, said.with("Suspect", "suspect", "decrypt", "dead message"))

		f.keys = [][]byte{old}
		stranger := f.start("stranger", false)
		time.Sleep(time.Minute)
		assert.True(t, alive(1)(stranger.Members()), "the old key opens nothing any more")
		assert.NotEmpty(t, said.with("decrypt"))
	})
}

func TestKeysCanBeReplacedInAnyWay(t *testing.T) {
	m, err := New(Config{Name: "a", Keys: [][]byte{key(1), key(2), key(3)}})
	require.NoError(t, err)
	for _, step := range [][]byte{{1, 3}, {3, 4, 1}, {2}, {5, 2, 6, 7}, {2, 7}, {8, 9}} {
		var keys [][]byte
		for _, b := range step {
			keys = append(keys, key(b))
		}
		require.NoError(t, m.SetKeys(keys))
		got := m.ring.GetKeys()
		assert.Equal(t, keys[0], got[0], "the first encrypts")
		assert.ElementsMatch(t, keys, got)
	}
	require.ErrorIs(t, m.SetKeys(nil), ErrNotEncrypted)
	require.ErrorContains(t, m.SetKeys([][]byte{key(1), {1}}), "keys[1] must have 16, 24 or 32 bytes")
	assert.Len(t, m.ring.GetKeys(), 2, "a bad list changes nothing")

	plain, err := New(Config{Name: "b"})
	require.NoError(t, err)
	require.NoError(t, plain.SetKeys(nil))
	require.ErrorIs(t, plain.SetKeys([][]byte{key(1)}), ErrNotEncrypted)
}
