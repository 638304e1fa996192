package device

import (
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/internal/worker"
	"warmd/placement"
)

func (w *world) states() (out []string) {
	for _, x := range w.d.View().Workers {
		if x.Placement != "" {
			out = append(out, x.State)
		}
	}
	return out
}

func TestAReadyModelSleepsAndWakesWithATrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		var heads []placement.Trace
		told := heard{said: make(chan string, 64)}
		w.d.cfg.Trace = func(head placement.Trace, _ string, _ time.Time) Trace { heads = append(heads, head); return told }
		w.start()
		e, _ := w.place("p")
		for len(told.said) > 0 {
			<-told.said
		}
		p, err := w.d.Sleep(t.Context(), e, 0)
		require.NoError(t, err)
		require.True(t, p.Sleeping)
		require.Equal(t, placement.Ready, p.State)
		require.Equal(t, []string{"sleeping"}, w.states())
		require.Equal(t, map[string]string{"p": p.Request.Key()}, w.device().Sleeping)
		require.Equal(t, 1, w.device().Busy, "it keeps its slot")
		synctest.Wait() // the answer comes before the record
		require.True(t, w.journal.recs["p"].Placement.Sleeping)

		woken := make(chan error, 2)
		for range 2 { // who comes second finds it awake
			go func() { _, err := w.d.Wake(t.Context(), e, ""); woken <- err }()
		}
		require.NoError(t, <-woken)
		require.NoError(t, <-woken)
		require.False(t, e.Placement().Sleeping)
		require.Equal(t, []string{"serving"}, w.states())
		require.Empty(t, w.device().Sleeping)
		require.Len(t, heads, 2)
		require.Equal(t, placement.TierSleeping, heads[1].Tier)
		require.Equal(t, []string{"wake", "first token", "ready"}, []string{<-told.said, <-told.said, <-told.said})
		synctest.Wait()
		require.Contains(t, w.kinds(), "placement.sleeping")
		require.Contains(t, w.kinds(), "placement.awake")
	})
}

func TestWhatCannotSleepSaysWhyAndServesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		e, _ := w.place("p")
		f := w.vllm.worker(e.Placement().Worker)
		for _, c := range []struct {
			err  error
			code placement.Code
		}{
			{errors.Join(errors.ErrUnsupported, &worker.RemoteError{Code: "unsupported", Message: "needs a GPU"}), placement.CodeUnsupported},
			{&worker.RemoteError{Code: "busy", Message: "1 requests still run"}, placement.CodeConflict},
			{&worker.StateError{Worker: "w1", Request: "sleep", State: worker.Draining}, placement.CodeConflict},
			{errors.New("control connection ended"), placement.CodeInternal},
		} {
			f.mu.Lock()
			f.sleepErr = c.err
			f.mu.Unlock()
			_, err := w.d.Sleep(t.Context(), e, 0)
			require.Equal(t, c.code, placement.AsError(err).Code, "%v", err)
			require.Equal(t, []string{"serving"}, w.states())
		}
		_, err := w.d.Release(t.Context(), e, 0)
		require.NoError(t, err)
		for _, do := range []func() error{
			func() error { _, err := w.d.Sleep(t.Context(), e, 0); return err },
			func() error { _, err := w.d.Wake(t.Context(), e, ""); return err },
		} {
			require.Equal(t, placement.CodeConflict, placement.AsError(do()).Code)
		}
	})
}

func TestASleepingModelIsReleasedAndItsDeathIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		e, _ := w.place("p")
		o, _ := w.place("o")
		for _, x := range []*Entry{e, o} {
			_, err := w.d.Sleep(t.Context(), x, 0)
			require.NoError(t, err)
		}
		p, err := w.d.Release(t.Context(), e, 0)
		require.NoError(t, err)
		require.Equal(t, placement.Released, p.State)
		w.vllm.worker(o.Placement().Worker).die("killed by signal 9")
		<-o.Done()
		require.Equal(t, placement.Failed, o.Placement().State)
		require.Equal(t, 2, w.device().Free)
	})
}

func TestAnAdoptedModelSleepsOnOrIsKnownToHaveWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		c := w.relic("asleep", func(r *Record) { r.Placement.Sleeping = true })
		w.d.AdoptPlacement(c, w.vllm.add("old", "sleeping"), nil)
		woke := w.relic("awake", func(r *Record) {
			r.Placement.Sleeping, r.Placement.Worker, r.WorkerRecord = true, "other", json.RawMessage(`{"id":"other"}`)
		})
		w.d.AdoptPlacement(woke, w.vllm.add("other", "serving"), nil)
		w.start()
		synctest.Wait()
		require.Equal(t, map[string]string{"asleep": c.Entry.Placement().Request.Key()}, w.device().Sleeping)
		_, err := w.d.Wake(t.Context(), c.Entry, "")
		require.NoError(t, err)
		require.Empty(t, w.device().Sleeping)
	})
}
