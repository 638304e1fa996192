package device

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

func TestWorkersAreParkedFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		time.Sleep(100 * time.Millisecond)
		require.Equal(t, map[string]int{"vllm": 1}, w.device().Warm)
		require.Equal(t, 2, w.device().Free)
		require.Contains(t, w.journal.parked, "w1")
	})
}

func TestAClaimTakesTheParkedWorkerAndTheSlotIsRefilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		time.Sleep(time.Second)
		begin := time.Now()
		e, last := w.place("p")
		require.Equal(t, placement.EventReady, last.Event)
		require.Equal(t, time.Second, time.Since(begin), "the probe's second and nothing else")
		p := e.Placement()
		require.Equal(t, "w1", p.Worker)
		require.Equal(t, placement.TierWarm, p.Tier)
		require.Equal(t, placement.Ready, p.State)
		require.InDelta(t, 1, p.StartSeconds, 0.01)
		require.NotEmpty(t, p.Endpoint)
		require.Len(t, w.vllm.worker("w1").loads, 1)
		require.NotNil(t, w.vllm.worker("w1").loads[0].Listener)
		require.Equal(t, 1, w.device().Busy)
		require.Equal(t, map[string]int{"vllm": 1}, w.device().Warm, "one slot is free: one worker is parked")
		synctest.Wait() // the answer comes before the record
		require.NotContains(t, w.journal.parked, "w1")
		require.Equal(t, "w1", w.journal.recs["p"].Placement.Worker)
	})
}

func TestAcceptedComesAfterTheFsync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		w.journal.set(func() { w.journal.slow = 2 * time.Second })
		begin := time.Now()
		e, refusal := w.claim("p")
		require.Nil(t, refusal)
		require.Equal(t, 2*time.Second, time.Since(begin))
		require.Equal(t, []string{"p loading"}, w.journal.synced)
		lines, _ := e.Feed.From(0)
		require.Equal(t, placement.EventAccepted, lines[0].Event)
		require.Equal(t, 1, lines[0].Capacity.Devices[0].Busy)
		require.NotEmpty(t, lines[0].Placement.Endpoint)
	})
}

// A slow disk must not hold up the loop: another claim is decided meanwhile.
func TestASlowFsyncDoesNotStopTheLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 1 })
		w.start()
		time.Sleep(time.Second)
		w.journal.set(func() { w.journal.slow = 10 * time.Second })
		go func() { _, _ = w.claim("slow") }()
		time.Sleep(time.Second)
		begin := time.Now()
		_, refusal := w.claim("other")
		require.Equal(t, placement.CodeNoCapacity, refusal.Code)
		require.Zero(t, time.Since(begin))
	})
}

func TestADiskThatTakesNothingRefusesAndKeepsTheWorkerParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		time.Sleep(time.Second)
		w.journal.set(func() { w.journal.err = errors.New("no space left on device") })
		_, refusal := w.claim("p")
		require.Equal(t, placement.CodeDiskFull, refusal.Code)
		require.Equal(t, 2, w.device().Free)
		time.Sleep(time.Second)
		require.Equal(t, map[string]int{"vllm": 1}, w.device().Warm)
		require.Contains(t, w.vllm.alive(), "w1")
		w.journal.set(func() { w.journal.err = nil })
		_, last := w.place("p")
		require.Equal(t, placement.EventReady, last.Event, "it recovers with the disk")
		w.journal.set(func() { w.journal.err = errors.New("no space left on device") })
		p, err := w.d.Release(t.Context(), w.book.Get("p"), 0)
		require.NoError(t, err, "a release works without the disk")
		require.Equal(t, placement.Released, p.State)
	})
}

func TestWithNothingParkedAWorkerIsForkedForTheClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Warm = map[string]int{"vllm": 0} })
		w.start()
		time.Sleep(time.Second)
		begin := time.Now()
		e, last := w.place("p")
		require.Equal(t, placement.EventReady, last.Event)
		require.Equal(t, 1030*time.Millisecond, time.Since(begin))
		require.Equal(t, placement.TierWarm, e.Placement().Tier)
		require.Equal(t, 1, w.vllm.forkCount())
	})
}

func TestAClaimTakesAForkThatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 1 })
		w.start()
		time.Sleep(10 * time.Millisecond) // the fork takes 30
		e, last := w.place("p")
		require.Equal(t, placement.EventReady, last.Event)
		require.Equal(t, "w1", e.Placement().Worker)
		require.Equal(t, 1, w.vllm.forkCount())
	})
}

func TestAColdStartRunsInTheSameSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 1 })
		w.start()
		time.Sleep(time.Second)
		e, last := w.place("p", cold)
		require.Equal(t, placement.EventReady, last.Event)
		require.Equal(t, placement.TierCold, e.Placement().Tier)
		require.Len(t, w.vllm.spawns, 1)
		require.Equal(t, "p", w.vllm.spawns[0].Placement)
		require.Zero(t, w.device().Free)
		require.Empty(t, w.device().Warm, "the only slot is taken: the parked worker gives way")
		require.Equal(t, []string{e.Placement().Worker}, w.vllm.alive())
		require.Equal(t, "serving", w.vllm.worker(e.Placement().Worker).Info().State)
	})
}

func TestWhatStartAllowsDecidesWithoutAZygote(t *testing.T) {
	for _, c := range []struct {
		name   string
		start  placement.Start
		status RuntimeStatus
		cold   bool // the spec forces a cold start
		tier   placement.Tier
		code   placement.Code
	}{
		{"auto falls back to cold", placement.StartAuto, RuntimeStatus{Kind: "vllm", Zygote: "down", Problem: "import error"}, false, placement.TierCold, ""},
		{"warm is refused", placement.StartWarm, RuntimeStatus{Kind: "vllm", Zygote: "down", Problem: "import error"}, false, "", placement.CodeNoWarm},
		{"warm is refused while it starts", placement.StartWarm, RuntimeStatus{Kind: "vllm", Zygote: "starting"}, false, "", placement.CodeNoWarm},
		{"cold is cold", placement.StartCold, RuntimeStatus{Kind: "vllm", Zygote: "up"}, false, placement.TierCold, ""},
		{"exec has no warm stage", placement.StartAuto, RuntimeStatus{Kind: "exec", Zygote: "up"}, false, placement.TierCold, ""},
		{"exec is never warm", placement.StartWarm, RuntimeStatus{Kind: "exec", Zygote: "up"}, false, "", placement.CodeNoWarm},
		{"an import-time env is cold", placement.StartAuto, RuntimeStatus{Kind: "vllm", Zygote: "up"}, true, placement.TierCold, ""},
		{"an import-time env is never warm", placement.StartWarm, RuntimeStatus{Kind: "vllm", Zygote: "up"}, true, "", placement.CodeNoWarm},
		{"a zygote that is up forks", placement.StartWarm, RuntimeStatus{Kind: "vllm", Zygote: "up"}, false, placement.TierWarm, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(cfg *Config) { cfg.Warm = nil })
				w.vllm.set(func() { w.vllm.status = c.status })
				w.start()
				e, refusal := w.claim("p", func(cl *Claim, r *placement.Request) {
					r.Start, cl.Start.Cold, cl.Start.ColdReason = c.start, c.cold, "env VLLM_X is read at import"
				})
				if c.code != "" {
					require.NotNil(t, refusal)
					require.Equal(t, c.code, refusal.Code)
					require.Equal(t, 2, w.device().Free)
					return
				}
				require.Nil(t, refusal)
				require.Equal(t, c.tier, e.Placement().Tier)
				require.Equal(t, placement.EventReady, w.follow(e).Event)
			})
		})
	}
}

func TestOneOfManyClaimsForTheLastSlotWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 1 })
		w.start()
		time.Sleep(time.Second)
		const n = 50
		refusals := make(chan *placement.Error, n)
		for i := range n {
			go func() {
				_, refusal := w.claim("p" + string(rune('A'+i)))
				refusals <- refusal
			}()
		}
		won := 0
		for range n {
			if r := <-refusals; r == nil {
				won++
			} else {
				require.Equal(t, placement.CodeNoCapacity, r.Code)
			}
		}
		require.Equal(t, 1, won)
	})
}

func TestTheSameClaimTwiceIsOneStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		time.Sleep(time.Second)
		ends := make(chan placement.Progress, 20)
		for range cap(ends) {
			go func() { _, last := w.place("p"); ends <- last }()
		}
		for range cap(ends) {
			require.Equal(t, placement.EventReady, (<-ends).Event)
		}
		require.Equal(t, 1, w.device().Busy)
		require.Len(t, w.journal.synced, 1)
		_, last := w.place("p")
		require.Equal(t, placement.EventReady, last.Event, "and after it was ready, the same answer")
	})
}

func TestMemoryThatIsNotThereIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		time.Sleep(time.Second)
		_, refusal := w.claim("p", func(_ *Claim, r *placement.Request) { r.MemoryBytes = 200 << 30 })
		require.Equal(t, placement.CodeNoCapacity, refusal.Code)
		require.Contains(t, refusal.Message, "wanted")
	})
}

func TestADrainedDeviceRefusesAndGivesItsParkedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		_, last := w.place("old")
		require.Equal(t, placement.EventReady, last.Event)
		require.NoError(t, w.d.Drain(t.Context(), true))
		time.Sleep(time.Second)
		_, refusal := w.claim("new")
		require.Equal(t, placement.CodeDraining, refusal.Code)
		require.Empty(t, w.device().Warm)
		require.Equal(t, 1, w.device().Busy, "what runs goes on")
		require.NoError(t, w.d.Drain(t.Context(), false))
		time.Sleep(time.Second)
		require.Equal(t, map[string]int{"vllm": 1}, w.device().Warm)
	})
}

func TestAFaultyDeviceRefusesAndLeavesWhatRunsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		w.place("old")
		w.d.SetFault("GPU is lost")
		_, refusal := w.claim("new")
		require.Equal(t, placement.CodeNoCapacity, refusal.Code)
		require.Contains(t, refusal.Message, "GPU is lost")
		require.Equal(t, "GPU is lost", w.device().Problem)
		require.Equal(t, placement.Ready, w.book.Get("old").Placement().State)
		w.d.SetFault("")
		_, last := w.place("new")
		require.Equal(t, placement.EventReady, last.Event)
	})
}

// Two runtimes park on one slot. The claim of one makes the other's give its
// memory back, and the load waits for that.
func TestALoadWaitsUntilTheParkedOfOthersAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := newFakeRuntime()
		w := newWorld(t, func(c *Config) {
			c.Kind, c.Slots = "cuda", 1
			c.Runtimes["other"] = other
			c.Warm["other"] = 1
		})
		w.start()
		time.Sleep(time.Second)
		require.Equal(t, map[string]int{"vllm": 1, "other": 1}, w.device().Warm)
		e, refusal := w.claim("p")
		require.Nil(t, refusal)
		require.Empty(t, w.vllm.worker(e.Placement().Worker).loads, "not yet")
		require.Equal(t, placement.EventReady, w.follow(e).Event)
		require.Empty(t, other.alive())
		_, err := w.d.Release(t.Context(), e, 0)
		require.NoError(t, err)
		time.Sleep(100 * time.Millisecond)
		require.Equal(t, map[string]int{"vllm": 1, "other": 1}, w.device().Warm, "both are back")
	})
}
