package worker

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestForkedPairIsWarmThenServesThenStopsProvenGone(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1", "FAKE_GRANDCHILD=1")
	addr := serve(t, w, "p1")
	require.Equal(t, "hello from p1 [--model=m]\n", get(t, addr))
	i := w.Info()
	require.Equal(t, "p1", i.Placement)
	require.Equal(t, 1, i.Attempt)
	var all []Proc
	for _, p := range procsOf(w) {
		all = append(all, sessionMembers(p)...)
	}
	require.GreaterOrEqual(t, len(all), 3, "two halves and a grandchild")
	s, err := w.Stats(context.Background())
	require.NoError(t, err)
	require.GreaterOrEqual(t, s.Processes, 3)
	require.Positive(t, s.RSSBytes)

	require.NoError(t, w.Stop(soon(t), 0))
	requireGone(t, all...)
	require.Equal(t, "stopped", waitDead(t, w).Message)
	_, open := <-w.Events()
	require.False(t, open, "dead is the last event")
	require.NoError(t, w.Stop(soon(t), 0), "again is no error")
	require.NoDirExists(t, w.dir())
	_, err = w.Stats(context.Background())
	require.ErrorIs(t, err, ErrGone)
}

func TestForkTakesMilliseconds(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	h.fork(r, "first")
	best := time.Hour
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		began := time.Now()
		h.fork(r, id)
		best = min(best, time.Since(began))
	}
	t.Log("best fork", best)
	require.Less(t, best, time.Second)
}

func TestPhasesOfTheForkReachWhoeverReadsLater(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1")
	e := next(t, w, time.Second, func(e Event) bool { return e.Kind == EventPhase && e.Phase.Proc == roleAPI })
	require.Equal(t, "fork", e.Phase.Name)
	require.True(t, e.Phase.Warm)
	require.Equal(t, time.Millisecond, e.Phase.Dur)
	require.WithinDuration(t, time.Now(), e.Phase.Start, 10*time.Second)
}

func TestLoadAgainIsTheSameAndAnotherIsRefused(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1")
	serve(t, w, "p1")
	ctx := soon(t)
	require.NoError(t, w.Load(ctx, LoadSpec{Placement: "p1", Attempt: 1}))
	err := w.Load(ctx, LoadSpec{Placement: "p2", Attempt: 1})
	var bad *StateError
	require.ErrorAs(t, err, &bad)
	require.Equal(t, Serving, bad.State)
	require.EqualError(t, err, "load worker w1: it is serving with placement p1")
	require.Equal(t, Serving, w.Info().State, "a refused load harms nobody")
}

func TestPairThatTookHalfOfALoadIsKilled(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1", "FAKE_LOAD=refuse")
	_, f := listen(t)
	defer f.Close()
	ps := procsOf(w)
	err := w.Load(soon(t), LoadSpec{Placement: "p1", Attempt: 1, Listener: f})
	require.ErrorContains(t, err, "load worker w1: call load: bad_state")
	e := waitDead(t, w)
	require.Contains(t, e.Message, "bad_state")
	requireGone(t, ps...)
}

func TestFailedLoadSaysWhatTheHalfSaid(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1", "FAKE_LOAD=fail")
	_, f := listen(t)
	defer f.Close()
	_ = w.Load(soon(t), LoadSpec{Placement: "p1", Attempt: 1, Listener: f})
	e := next(t, w, time.Second, func(e Event) bool { return e.Kind == EventError && e.Detail == "Traceback ..." })
	require.Equal(t, "no file named config.json in /models/x", e.Message)
	e = waitDead(t, w)
	require.Equal(t, "engine exited with code 1: no file named config.json in /models/x", e.Message)
	require.Contains(t, e.Detail, "fake engine listens", "the last log lines")
}

func TestCrashWithoutAWordIsExplainedByItsLog(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1", "FAKE_LOAD=crash")
	_, f := listen(t)
	defer f.Close()
	// The crash may come before the API half took its part: then Load fails, too.
	_ = w.Load(soon(t), LoadSpec{Placement: "p1", Attempt: 1, Listener: f})
	e := waitDead(t, w)
	require.Equal(t, "engine exited with code 1: RuntimeError: the engine core is broken", e.Message)
}

func TestDeathIsReportedWithinASecondInEveryState(t *testing.T) {
	for _, role := range []string{roleEngine, roleAPI} {
		for _, state := range []State{Warm, Loading, Serving} {
			t.Run(role+"/"+string(state), func(t *testing.T) {
				h := fakeHost(t)
				r, _ := h.agent()
				load := "FAKE_LOAD=serve"
				if state == Loading {
					load = "FAKE_LOAD=hang"
				}
				w := h.fork(r, "w1", load, "FAKE_GRANDCHILD=1")
				if state != Warm {
					_, f := listen(t)
					defer f.Close()
					require.NoError(t, w.Load(soon(t), LoadSpec{Placement: "p1", Attempt: 1, Listener: f}))
					waitState(t, w, state)
				}
				var all []Proc
				for _, p := range procsOf(w) {
					all = append(all, sessionMembers(p)...)
				}
				require.NoError(t, w.Record().procs()[role].Signal(syscall.SIGKILL))
				began := time.Now()
				e := waitDead(t, w)
				t.Log("reported after", time.Since(began))
				require.Equal(t, roleWords[role]+" killed by signal 9", e.Message)
				require.NotEmpty(t, e.Detail)
				requireGone(t, all...)
			})
		}
	}
}

func TestStopWhileLoadingKillsAtOnce(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1", "FAKE_LOAD=hang")
	_, f := listen(t)
	defer f.Close()
	require.NoError(t, w.Load(soon(t), LoadSpec{Placement: "p1", Attempt: 1, Listener: f}))
	began := time.Now()
	require.NoError(t, w.Stop(soon(t), time.Minute))
	require.Less(t, time.Since(began), 20*time.Second, "long before the grace is over")
	var gone *StateError
	require.ErrorAs(t, w.Load(context.Background(), LoadSpec{}), &gone)
	require.Equal(t, Dead, gone.State)
}

func TestStopDrainsWhatServes(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1")
	serve(t, w, "p1")
	require.NoError(t, w.Stop(soon(t), time.Minute), "the fake ends by itself when drained")
	require.Equal(t, "stopped", waitDead(t, w).Message)
}

func TestStopThatRunsOutOfTimeNamesWhatStillRunsAndGoesOn(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.Stop(ctx, 0); err != nil {
		require.ErrorIs(t, err, context.Canceled)
	}
	<-w.Done()
	requireGone(t, procsOf(w)...)
}

func TestForkThatNeverWarmsLeavesNothing(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	waitZygote(t, r, isUp)
	_, err := r.Fork(within(t, 500*time.Millisecond), ForkSpec{ID: "w1", Env: map[string]string{"FAKE_WARM": "never"}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	found, err := r.Found(context.Background())
	require.NoError(t, err)
	require.Empty(t, found)
}

func TestPhasesThatNobodyReadsAreDroppedAndCounted(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "w1", "FAKE_PHASES=1000")
	_, f := listen(t)
	defer f.Close()
	require.NoError(t, w.Load(soon(t), LoadSpec{Placement: "p1", Attempt: 1, Listener: f}))
	require.Eventually(t, func() bool { return w.Info().DroppedEvents > 0 }, 10*time.Second, 5*time.Millisecond)
	require.NoError(t, w.Stop(soon(t), 10*time.Second))
	kinds := map[string]int{}
	last := ""
	for e := range w.Events() {
		kinds[e.Kind]++
		last = e.Kind
	}
	require.Equal(t, EventDead, last)
	require.InDelta(t, eventRoom-eventReserve, kinds[EventPhase], 4, "states take a little of the room")
}

func TestIDsThatAreNoPathElementAreRefused(t *testing.T) {
	r := fakeHost(t).new()
	for _, id := range []string{"", "a/b", "..", ".x", string(make([]byte, 65))} {
		_, err := r.Fork(context.Background(), ForkSpec{ID: id})
		require.ErrorContains(t, err, "worker id must be", id)
		_, err = r.Spawn(context.Background(), SpawnSpec{ID: id})
		require.Error(t, err)
	}
}

func TestLongRunDirIsRefusedByName(t *testing.T) {
	h := fakeHost(t)
	r := NewRuntime(RuntimeConfig{Manifest: h.manifest, RunDir: h.dir + "/" + strings.Repeat("x", 90), LogDir: h.dir, Launcher: NewExecLauncher(), Log: h.new().log})
	err := r.Run(context.Background())
	require.ErrorContains(t, err, "the kernel takes 107: use a shorter run dir")
}
