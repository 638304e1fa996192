package device

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"warmd/placement"
)

// step is one thing that happens to a device.
type step struct {
	Do   string
	N    int // which placement or worker
	Wait time.Duration
}

var happenings = []string{"claim", "claim", "claim", "release", "release", "die", "die parked", "drain", "undrain", "zygote down", "zygote up",
	"forks fail", "forks work", "disk full", "disk works", "stops fail", "stops work", "hang", "answer", "retry"}

// Whatever happens, in whatever order: the slots of every published View add up, no
// worker and no slot has two placements, what was accepted is never lost without
// a word, and when the troubles end every slot is free and warm again.
func TestTheLoopKeepsItsInvariants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		kind := rapid.SampledFrom([]string{"cpu", "cuda"}).Draw(rt, "kind")
		slots := rapid.IntRange(1, 3).Draw(rt, "slots")
		steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
			return step{rapid.SampledFrom(happenings).Draw(t, "do"), rapid.IntRange(0, 4).Draw(t, "n"),
				time.Duration(rapid.SampledFrom([]int{0, 1, 10, 40, 500, 3000, 40000}).Draw(t, "ms")) * time.Millisecond}
		}), 1, 40).Draw(rt, "steps")
		var problems []string
		synctest.Test(t, func(t *testing.T) { problems = live(t, kind, slots, steps) })
		if len(problems) > 0 {
			rt.Fatalf("%s", strings.Join(problems, "\n"))
		}
	})
}

func live(t *testing.T, kind string, slots int, steps []step) (problems []string) {
	w := newWorld(t, func(c *Config) { c.Kind, c.Slots = kind, slots })
	w.start()
	attempts := map[string]int{}
	for _, s := range steps {
		id := fmt.Sprint("p", s.N)
		switch s.Do {
		case "claim", "retry":
			if e := w.book.Get(id); s.Do != "retry" && (e == nil || e.Placement().State == placement.Failed) {
				attempts[id]++
			}
			attempt := max(attempts[id], 1)
			go func() {
				e, refusal := w.attempt(id, attempt, func(c *Claim, r *placement.Request) {
					c.Deadline = time.Now().Add(20 * time.Second)
					if s.N%2 == 0 {
						r.Start = placement.StartCold
					}
				})
				if refusal == nil {
					w.follow(e)
				}
			}()
		case "release":
			if e := w.book.Get(id); e != nil {
				go func() { _, _ = w.d.Release(t.Context(), e, time.Second) }()
			}
		case "die":
			if e := w.book.Get(id); e != nil {
				if f := w.vllm.worker(e.Placement().Worker); f != nil {
					f.die("killed")
				}
			}
		case "die parked":
			for _, v := range w.d.View().Workers {
				if f := w.vllm.worker(v.ID); f != nil && v.Placement == "" {
					f.die("killed")
					break
				}
			}
		case "drain", "undrain":
			_ = w.d.Drain(t.Context(), s.Do == "drain")
		case "zygote down":
			w.vllm.set(func() { w.vllm.status.Zygote = "down" })
			w.d.Poke()
		case "zygote up":
			w.vllm.set(func() { w.vllm.status.Zygote = "up" })
			w.d.Poke()
		case "forks fail":
			w.vllm.set(func() { w.vllm.forkErr = errors.New("no") })
		case "forks work":
			w.vllm.set(func() { w.vllm.forkErr = nil })
		case "disk full":
			w.journal.set(func() { w.journal.err = errors.New("full") })
		case "disk works":
			w.journal.set(func() { w.journal.err = nil })
		case "stops fail":
			w.vllm.set(func() { w.vllm.stopErr = errors.New("state D") })
		case "stops work":
			w.vllm.set(func() { w.vllm.stopErr = nil })
		case "hang":
			w.hang()
		case "answer":
			w.answer(time.Second)
		}
		time.Sleep(s.Wait)
	}
	// The troubles end.
	w.vllm.set(func() { w.vllm.stopErr, w.vllm.forkErr, w.vllm.status.Zygote = nil, nil, "up" })
	w.journal.set(func() { w.journal.err = nil })
	_ = w.d.Drain(t.Context(), false)
	w.d.Poke()
	time.Sleep(2 * time.Minute)
	for _, p := range w.book.List() {
		e := w.book.Get(p.ID)
		_, _ = w.d.Release(t.Context(), e, 0)
		if p := e.Placement(); !p.State.Terminal() || (p.State == placement.Failed && p.Reason == "") {
			problems = append(problems, fmt.Sprintf("placement %s ended as %s %q", p.ID, p.State, p.Reason))
		}
	}
	time.Sleep(2 * time.Minute)
	if d := w.device(); d.Free != slots || d.Warm["vllm"] != 1 || d.Problem != "" {
		problems = append(problems, fmt.Sprintf("at the end: %+v", d))
	}
	if n := len(w.vllm.alive()); n != 1 {
		problems = append(problems, fmt.Sprintf("%d workers are alive at the end: %v", n, w.vllm.alive()))
	}
	w.mu.Lock()
	problems = append(problems, w.broken...)
	w.mu.Unlock()
	return problems
}
