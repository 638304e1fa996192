package worker

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestServingWorkerSleepsAndWakesAsOftenAsItIsTold(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1")
	serve(t, w, "p1")
	for range 3 {
		require.NoError(t, w.Sleep(t.Context(), 0))
		waitState(t, w, Sleeping)
		require.NoError(t, w.Sleep(t.Context(), 0), "what sleeps stays so")
		ph, err := w.Wake(t.Context())
		require.NoError(t, err)
		require.Equal(t, "wake", ph.Name)
		require.Positive(t, ph.Dur)
		waitState(t, w, Serving)
		ph, err = w.Wake(t.Context())
		require.NoError(t, err)
		require.Zero(t, ph.Dur, "it is awake")
	}
}

func TestSleepIsRefusedWhereItCannotBe(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	parked := h.fork(r, "w1")
	var wrong *StateError
	require.ErrorAs(t, parked.Sleep(t.Context(), 0), &wrong)
	require.Equal(t, Warm, wrong.State)

	w := h.fork(r, "w2", "FAKE_SLEEP=unsupported")
	serve(t, w, "p2")
	require.ErrorIs(t, w.Sleep(t.Context(), 0), errors.ErrUnsupported)
	require.Equal(t, Serving, w.Info().State)

	busy := h.fork(r, "w3", "FAKE_SLEEP=busy")
	serve(t, busy, "p3")
	var said *RemoteError
	require.ErrorAs(t, busy.Sleep(t.Context(), time.Millisecond), &said)
	require.Equal(t, "busy", said.Code)

	cold, err := r.Spawn(soon(t), SpawnSpec{ID: "w4", Argv: []string{"/bin/sleep", "1000"}, Env: os.Environ(), Placement: "p4", Attempt: 1})
	require.NoError(t, err)
	require.NoError(t, cold.Served())
	require.ErrorIs(t, cold.Sleep(t.Context(), 0), errors.ErrUnsupported)
}

func TestANewAgentKnowsWhatSleeps(t *testing.T) {
	h := fakeHost(t)
	r, stop := h.agent()
	w := h.fork(r, "w1")
	serve(t, w, "p1")
	require.NoError(t, w.Sleep(t.Context(), 0))
	waitState(t, w, Sleeping)
	rec := w.Record()
	require.Equal(t, Sleeping, rec.State)
	stop()

	r, _ = h.agent()
	rec.State = Serving // a record that is behind: the half knows better
	w, err := r.Adopt(soon(t), rec)
	require.NoError(t, err)
	require.Equal(t, Sleeping, w.Info().State)
	_, err = w.Wake(t.Context())
	require.NoError(t, err)
	waitState(t, w, Serving)
}

func TestASleepingWorkerIsStoppedAtOnce(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1")
	serve(t, w, "p1")
	require.NoError(t, w.Sleep(t.Context(), 0))
	begin := time.Now()
	require.NoError(t, w.Stop(soon(t), time.Minute))
	require.Less(t, time.Since(begin), 10*time.Second)
}
