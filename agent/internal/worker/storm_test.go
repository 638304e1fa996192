package worker

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Forks, loads and stops go on while zygotes are killed under them and agents come
// and go. Whatever the order: a call ends in time, a stopped worker's processes
// are gone, a living one is found by the next agent, and nothing is left at the
// end (newHost looks for that in every test).
func TestStormOfKilledZygotesAndAgentsLosesNoProcess(t *testing.T) {
	h := fakeHost(t)
	kept := map[string]Record{}
	for round := range 3 {
		r, stop := h.agent()
		waitZygote(t, r, isUp)
		for id, rec := range kept {
			if _, err := r.Adopt(soon(t), rec); err != nil {
				require.ErrorIs(t, err, ErrLost, id)
				delete(kept, id)
			}
		}
		type outcome struct {
			keep *Worker
			err  error
		}
		out := make(chan outcome)
		const callers, each = 3, 4
		for c := range callers {
			go func() {
				for i := range each {
					w, err := r.Fork(within(t, 30*time.Second), ForkSpec{ID: fmt.Sprintf("r%d-%d-%d", round, c, i)})
					if err != nil {
						out <- outcome{} // its zygote was killed: nothing of it is left
						continue
					}
					if i == 0 {
						out <- outcome{keep: w}
						continue
					}
					ps := procsOf(w)
					err = w.Stop(within(t, 30*time.Second), 0)
					for _, p := range ps {
						if err == nil && p.Alive() {
							err = fmt.Errorf("process %v of stopped worker %s lives", p, w.id)
						}
					}
					out <- outcome{err: err}
				}
			}()
		}
		for n := range callers * each {
			if n%4 == 1 {
				if p, ok := FindProc(r.Status().PID); ok {
					_ = p.Signal(syscall.SIGKILL)
				}
			}
			o := <-out
			require.NoError(t, o.err)
			if o.keep != nil {
				kept[o.keep.id] = o.keep.Record()
			}
		}
		stop()
	}
	r, _ := h.agent()
	found, err := r.Found(soon(t))
	require.NoError(t, err)
	living := map[string]bool{}
	for _, rec := range found {
		living[rec.ID] = true
	}
	for id, rec := range kept {
		require.Equal(t, rec.Living(), living[id], id)
	}
	require.NoError(t, r.Shutdown(within(t, 30*time.Second)))
	for _, rec := range kept {
		require.Empty(t, rec.living())
	}
	_, err = r.Spawn(context.Background(), SpawnSpec{ID: "late", Argv: []string{"/bin/true"}})
	require.ErrorIs(t, err, ErrNotRunning)
}
