package device

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

func TestReleasedSlotIsWarmAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 1 })
		w.start()
		e, _ := w.place("p")
		require.Zero(t, w.device().Free)
		begin := time.Now()
		p, err := w.d.Release(t.Context(), e, 0)
		require.NoError(t, err)
		require.Equal(t, placement.Released, p.State)
		require.Equal(t, 1, w.device().Free)
		for w.device().Warm["vllm"] == 0 {
			time.Sleep(time.Millisecond)
		}
		require.Less(t, time.Since(begin), time.Second)
		require.Len(t, w.vllm.alive(), 1)
	})
}

// slowLoop is an Observer that keeps the loop busy once a placement is ready.
type slowLoop struct{ d *Device }

func (*slowLoop) Started(placement.Tier, float64) {}
func (s *slowLoop) Ended(string)                  { s.d.post(func() { time.Sleep(time.Second) }) }

func TestWhoHearsThatItIsReadyFindsItServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowLoop{}
		w := newWorld(t, func(c *Config) { c.Observe = slow })
		slow.d = w.d
		w.start()
		e, last := w.place("p", cold)
		require.Equal(t, placement.EventReady, last.Event)
		states := map[string]string{}
		for _, x := range w.d.View().Workers {
			states[x.Placement] = x.State
		}
		require.Equal(t, serving, states[e.ID])
	})
}

func TestAReleaseDrainsWithinTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		e, _ := w.place("p")
		f := w.vllm.worker(e.Placement().Worker)
		f.mu.Lock()
		f.drainFor = 3 * time.Second
		f.mu.Unlock()
		begin := time.Now()
		go func() { // a second release of the same waits for the same end
			_, err := w.d.Release(t.Context(), e, time.Minute)
			require.NoError(t, err)
		}()
		_, err := w.d.Release(t.Context(), e, time.Minute)
		require.NoError(t, err)
		require.InDelta(t, 3, time.Since(begin).Seconds(), 0.1)
		require.Equal(t, []time.Duration{time.Minute}, f.stopped())
		p, err := w.d.Release(t.Context(), e, 0)
		require.NoError(t, err, "releasing what is over succeeds")
		require.Equal(t, placement.Released, p.State)
	})
}

func TestAReleaseThatNobodyWaitsForGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		e, _ := w.place("p")
		f := w.vllm.worker(e.Placement().Worker)
		f.mu.Lock()
		f.drainFor = 10 * time.Second
		f.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := w.d.Release(ctx, e, time.Minute)
		require.Error(t, err)
		<-e.Done()
		require.Equal(t, placement.Released, e.Placement().State)
	})
}

func TestAReleaseEndsAStartWhereverItIs(t *testing.T) {
	for _, c := range []struct {
		name  string
		setup func(*world)
	}{
		{"while it forks", func(w *world) { w.vllm.set(func() { w.vllm.forkFor = 10 * time.Second }) }},
		{"while it loads", func(w *world) { w.hang() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(c *Config) { c.Warm = nil })
				c.setup(w)
				w.start()
				e, refusal := w.claim("p")
				require.Nil(t, refusal)
				time.Sleep(2 * time.Second)
				go func() { _, _ = w.d.Release(t.Context(), e, 0) }()
				last := w.follow(e)
				require.Equal(t, placement.EventReleased, last.Event)
				require.Equal(t, placement.CodeReleased, last.Error.Code)
				require.Empty(t, w.vllm.alive())
				require.Equal(t, 2, w.device().Free)
			})
		})
	}
}

func TestAnEngineThatDiesWhileLoadingFailsTheStartAndRefillsTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		w.hang()
		e, refusal := w.claim("p")
		require.Nil(t, refusal)
		time.Sleep(time.Second)
		f := w.vllm.worker(e.Placement().Worker)
		f.events <- Event{Kind: EventError, Message: "model has no tokenizer", Detail: "Traceback"}
		f.die("exit status 1")
		last := w.follow(e)
		require.Equal(t, placement.EventFailed, last.Event)
		require.Equal(t, placement.CodeStartFailed, last.Error.Code)
		require.Contains(t, last.Error.Message, "model has no tokenizer")
		require.Contains(t, last.Error.Detail, "Traceback")
		require.Contains(t, last.Error.Detail, "last words of")
		require.Equal(t, 2, last.Capacity.Devices[0].Free)
		require.Equal(t, placement.Failed, e.Placement().State)
	})
}

// The probe often breaks before the death is known: the death must win.
func TestABrokenProbeWaitsForTheReasonOfTheDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		w.probing(func(context.Context) error { return errors.New("connection reset") })
		e, refusal := w.claim("p")
		require.Nil(t, refusal)
		time.Sleep(100 * time.Millisecond)
		w.vllm.worker(e.Placement().Worker).die("killed by signal 9")
		last := w.follow(e)
		require.Contains(t, last.Error.Message, "signal 9")
	})
}

func TestAnEngineThatCannotAnswerFailsTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		w.probing(func(context.Context) error { return errors.New("the engine answered 404") })
		_, last := w.place("p")
		require.Equal(t, placement.CodeStartFailed, last.Error.Code)
		require.Contains(t, last.Error.Message, "404")
		require.Contains(t, last.Error.Detail, "log of")
		require.Equal(t, 2, w.device().Free)
	})
}

func TestAWorkerThatCannotLoadFailsTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		w.vllm.set(func() { w.vllm.loadErr = errors.New("bad_state") })
		_, last := w.place("p")
		require.Equal(t, placement.CodeStartFailed, last.Error.Code)
		require.Contains(t, last.Error.Message, "bad_state")
	})
}

// Clients wait in the endpoint's backlog since the claim: the probe must not be before
// them.
func TestTheProbeAsksWhenTheWorkerSaysThatItServesAndNoEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.vllm.loadFor = 3 * time.Second
		begin := time.Now()
		var asked time.Duration
		w.probing(func(context.Context) error { asked = time.Since(begin); return nil })
		w.start()
		_, last := w.place("p")
		require.Equal(t, placement.EventReady, last.Event)
		require.GreaterOrEqual(t, asked, 3*time.Second)
		require.Less(t, asked, 3200*time.Millisecond)
	})
}

func TestAServingEngineThatDiesIsReportedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 1 })
		w.start()
		e, _ := w.place("p")
		time.Sleep(time.Hour)
		w.vllm.worker(e.Placement().Worker).die("killed by signal 9 (out of memory?)")
		begin := time.Now()
		for e.Placement().State != placement.Failed {
			time.Sleep(time.Millisecond)
		}
		require.Less(t, time.Since(begin), time.Second)
		require.Contains(t, e.Placement().Reason, "signal 9")
		require.Equal(t, placement.CodeWorkerLost, e.Record().Error.Code)
		require.Equal(t, placement.EventFailed, w.follow(e).Event)
		<-e.Done()
		require.Equal(t, 1, w.device().Free)
		time.Sleep(time.Second)
		require.Equal(t, map[string]int{"vllm": 1}, w.device().Warm)
	})
}

func TestTheDeadlineKillsAStartThatNeverBecomesReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		w.hang()
		begin := time.Now()
		e, last := w.place("p", func(c *Claim, _ *placement.Request) { c.Deadline = time.Now().Add(10 * time.Second) })
		require.InDelta(t, 10, time.Since(begin).Seconds(), 0.5)
		require.Equal(t, placement.CodeTimeout, last.Error.Code)
		require.Contains(t, last.Error.Detail, "log of")
		require.NotContains(t, w.vllm.alive(), e.Placement().Worker)
		require.Equal(t, 2, w.device().Free)
	})
}

func TestAStartThatNobodyFollowsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		e, refusal := w.claim("p")
		require.Nil(t, refusal)
		begin := time.Now()
		<-e.Done()
		require.InDelta(t, 30, time.Since(begin).Seconds(), 1)
		require.Equal(t, placement.Failed, e.Placement().State, "it was ready, and nobody was told")
		require.Contains(t, e.Placement().Reason, "nobody followed")
		require.Equal(t, placement.CodeStartFailed, e.Record().Error.Code)
		require.Equal(t, 2, w.device().Free)
	})
}

func TestAFollowerThatComesBackWithinTheGraceKeepsTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		w.answer(2 * time.Minute)
		e, refusal := w.claim("p", func(c *Claim, _ *placement.Request) { c.Deadline = time.Now().Add(time.Hour) })
		require.Nil(t, refusal)
		for range 4 { // each away for 25 s, back for 2
			time.Sleep(25 * time.Second)
			leave := e.Feed.join()
			time.Sleep(2 * time.Second)
			leave()
		}
		require.Equal(t, placement.EventReady, w.follow(e).Event)
		time.Sleep(time.Hour)
		require.Equal(t, placement.Ready, e.Placement().State, "delivered: nobody has to follow any more")
	})
}

func TestForksThatFailAreSpacedOutWithTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.vllm.set(func() { w.vllm.forkErr = errors.New("cannot fork: out of memory") })
		w.start()
		time.Sleep(500 * time.Millisecond)
		require.Equal(t, 3, w.vllm.forkCount(), "three at once")
		require.Contains(t, w.device().Problem, "out of memory")
		require.Equal(t, 2, w.device().Free)
		time.Sleep(10 * time.Minute)
		require.Less(t, w.vllm.forkCount(), 20, "at most one a minute in the end")
		w.vllm.set(func() { w.vllm.forkErr = nil })
		time.Sleep(2 * time.Minute)
		require.Equal(t, map[string]int{"vllm": 1}, w.device().Warm)
		require.Empty(t, w.device().Problem)
	})
}

func TestWorkersThatDieYoungCountAsFailedForks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.vllm.set(func() { w.vllm.dieAt = 100 * time.Millisecond })
		w.start()
		time.Sleep(10 * time.Minute)
		require.Less(t, w.vllm.forkCount(), 25)
		require.Contains(t, w.device().Problem, "died young")
		w.vllm.set(func() { w.vllm.dieAt = 0 })
		time.Sleep(3 * time.Minute)
		require.Empty(t, w.device().Problem)
	})
}

func TestAnotherWarmCountIsReachedAndWhatIsPlacedIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 3 })
		w.start()
		_, last := w.place("p-1")
		require.Equal(t, placement.EventReady, last.Event)
		parked := func(n int) {
			time.Sleep(time.Second)
			synctest.Wait()
			require.Equal(t, n, w.device().Warm["vllm"])
			require.Len(t, w.vllm.alive(), n+1, "and the placement's own")
		}
		parked(1)
		w.d.SetWarm(map[string]int{"vllm": 2, "elsewhere": 1})
		parked(2)
		w.d.SetWarm(map[string]int{})
		parked(0)
		require.Equal(t, placement.Ready, w.book.Get("p-1").Placement().State)
		w.d.SetWarm(map[string]int{"vllm": 1})
		parked(1)
	})
}

func TestAParkedWorkerThatDiesIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		time.Sleep(time.Minute)
		w.vllm.worker("w1").die("killed by signal 9")
		time.Sleep(100 * time.Millisecond)
		require.Equal(t, map[string]int{"vllm": 1}, w.device().Warm)
		require.Equal(t, []string{"w2"}, w.vllm.alive())
		require.NotContains(t, w.journal.parked, "w1")
		require.Contains(t, w.kinds(), "worker.dead")
	})
}

// The parked worker dies in the moment it is claimed: another one takes its place.
func TestAClaimOutlivesItsParkedWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 1 })
		w.start()
		time.Sleep(time.Second)
		w.journal.set(func() { w.journal.slow = time.Second })
		go func() { time.Sleep(500 * time.Millisecond); w.vllm.worker("w1").die("killed") }()
		e, last := w.place("p")
		require.Equal(t, placement.EventReady, last.Event)
		require.NotEqual(t, "w1", e.Placement().Worker)
	})
}

func TestMemoryThatDoesNotComeBackQuarantinesTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Kind, c.Slots, c.Warm = "cuda", 1, nil })
		w.start()
		time.Sleep(time.Second)
		e, _ := w.place("p")
		w.mem.set(func() { w.mem.free -= 60 << 30 })
		_, err := w.d.Release(t.Context(), e, 0)
		require.NoError(t, err, "the placement is over; the slot is not free")
		require.Equal(t, placement.Device{
			ID: "cpu-0", Kind: "cuda", FreeBytes: 40 << 30, Slots: 1, Quarantined: 1, Placements: []string{"p"},
		}, w.device())
		require.Contains(t, w.d.View().Workers[0].Problem, "not returned")
		_, refusal := w.claim("q")
		require.Equal(t, placement.CodeNoCapacity, refusal.Code)
		w.mem.set(func() { w.mem.free += 60 << 30 })
		time.Sleep(time.Minute)
		require.Equal(t, 1, w.device().Free)
	})
}

func TestAProcessThatKeepsMemoryQuarantinesTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Kind, c.Slots, c.Warm = "cuda", 1, nil })
		w.start()
		e, _ := w.place("p")
		w.mem.set(func() { w.mem.pids = []int{1001} })
		_, err := w.d.Release(t.Context(), e, 0)
		require.NoError(t, err)
		require.Equal(t, 1, w.device().Quarantined)
		require.Contains(t, w.d.View().Workers[0].Problem, "1001")
		w.mem.set(func() { w.mem.pids = nil })
		time.Sleep(time.Minute)
		require.Equal(t, 1, w.device().Free)
	})
}

func TestAWorkerThatCannotBeEndedKeepsItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 1 })
		w.start()
		e, _ := w.place("p")
		w.vllm.set(func() { w.vllm.stopErr = errors.New("process 7 is in state D") })
		p, err := w.d.Release(t.Context(), e, 0)
		require.NoError(t, err)
		require.Equal(t, placement.Released, p.State)
		require.Equal(t, 1, w.device().Quarantined)
		_, refusal := w.attempt("p2", 1)
		require.Equal(t, placement.CodeNoCapacity, refusal.Code)
		w.vllm.set(func() { w.vllm.stopErr = nil })
		time.Sleep(time.Minute)
		require.Equal(t, 1, w.device().Free)
		require.Equal(t, map[string]int{"vllm": 1}, w.device().Warm)
	})
}

func TestAParkedWorkerThatCannotBeEndedKeepsASlotUntilItCan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		time.Sleep(time.Second)
		w.vllm.set(func() { w.vllm.stopErr = errors.New("process 7 is in state D") })
		require.NoError(t, w.d.Drain(t.Context(), true))
		time.Sleep(time.Second)
		require.Equal(t, 1, w.device().Quarantined)
		w.vllm.set(func() { w.vllm.stopErr = nil })
		time.Sleep(time.Minute)
		require.Equal(t, 2, w.device().Free)
		require.Empty(t, w.vllm.alive())
	})
}

func TestTheEndOfTheAgentEndsNoWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 3 })
		w.start()
		serving, _ := w.place("serving")
		w.hang()
		loading, refusal := w.claim("loading")
		require.Nil(t, refusal)
		time.Sleep(time.Second)
		w.end()
		require.Equal(t, placement.Ready, serving.Placement().State)
		require.Equal(t, placement.Loading, loading.Placement().State)
		require.Len(t, w.vllm.alive(), 3)
		for _, id := range w.vllm.alive() {
			require.Empty(t, w.vllm.worker(id).stopped())
		}
		require.Equal(t, placement.Loading, w.journal.recs["loading"].Placement.State)
		_, refusal = w.claim("late")
		require.Equal(t, placement.CodeUnavailable, refusal.Code)
	})
}

func TestPhasesOfAStartAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		time.Sleep(time.Minute)
		e, _ := w.place("p")
		lines, _ := e.Feed.From(0)
		got := map[string]*placement.Phase{}
		for _, l := range lines {
			if l.Phase != nil {
				got[l.Phase.Name] = l.Phase
			}
		}
		require.True(t, got["fork"].Before, "done before the request: that is what warm means")
		require.True(t, got["park"].Before)
		require.False(t, got["attach"].Before)
		require.InDelta(t, 1, got["first token"].Duration, 0.01)
	})
}
