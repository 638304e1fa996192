package device

import (
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

// relic makes the record of an earlier agent and its entry.
func (w *world) relic(id string, change func(*Record)) Claim {
	r := Record{Received: time.Now(), Deadline: time.Now().Add(time.Minute), Placement: placement.Placement{
		ID: id, Request: placement.Request{Model: "m"}.Normalize(), Attempt: 1, State: placement.Ready, Device: "cpu-0",
		Runtime: "vllm", Worker: "old", Tier: placement.TierWarm, Endpoint: "http://127.0.0.1:1",
	}, WorkerRecord: json.RawMessage(`{"id":"old"}`)}
	if change != nil {
		change(&r)
	}
	c := Claim{Entry: w.book.Restore(r), Runtime: "vllm", Deadline: r.Deadline, Start: Start{Argv: []string{"x"}}}
	if r.Placement.State == placement.Ready {
		c.Endpoint = w.ports.Hold(1)
		return c
	}
	e, err := w.ports.Reserve()
	require.NoError(w.t, err)
	c.Endpoint = e
	return c
}

func loading(r *Record) { r.Placement.State = placement.Loading }

// heard is a trace that tells what it is told.
type heard struct {
	noTrace
	said chan string
}

func (h heard) Phase(name, _ string, _ time.Time, _ time.Duration) { h.said <- name }
func (h heard) Ready(time.Time)                                    { h.said <- "ready" }

func TestTheTraceOfAnAdoptedStartGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		trace, asked := heard{said: make(chan string, 16)}, []string{}
		w.d.cfg.Resume = func(id string) Trace {
			asked = append(asked, id)
			return trace
		}
		served := w.relic("served", nil)
		w.d.AdoptPlacement(served, w.vllm.add("old", "serving"), nil)
		w.d.AdoptPlacement(w.relic("p", func(r *Record) { loading(r); r.WorkerRecord = nil; r.Placement.Worker = "" }), nil, nil)
		w.start()
		require.Equal(t, []string{"p"}, asked, "one that was ready has ended")
		last := ""
		for said := range trace.said {
			if said == "ready" {
				break
			}
			last = said
		}
		require.Equal(t, "first token", last)
	})
}

func TestServingWorkersAreAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		old := w.vllm.add("old", "serving")
		old.placement = "p"
		c := w.relic("p", nil)
		w.d.AdoptPlacement(c, old, nil)
		require.Equal(t, 1, w.device().Busy, "right before the loop runs")
		w.start()
		time.Sleep(time.Hour)
		require.Equal(t, placement.Ready, c.Entry.Placement().State)
		require.Empty(t, old.stopped())
		require.Equal(t, placement.EventReady, w.follow(c.Entry).Event)
		old.die("signal 9")
		<-c.Entry.Done()
		require.Equal(t, placement.Failed, c.Entry.Placement().State)
		require.Equal(t, 2, w.device().Free)
	})
}

func TestParkedWorkersAreAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.d.AdoptParked("vllm", w.vllm.add("old", "warm"), false)
		w.d.AdoptParked("vllm", w.vllm.add("dying", "draining"), true)
		require.Equal(t, map[string]int{"vllm": 1}, w.device().Warm)
		w.start()
		time.Sleep(time.Second)
		require.Equal(t, []string{"old"}, w.vllm.alive(), "one is enough, the other's end is finished")
		require.Zero(t, w.vllm.forkCount())
		e, last := w.place("p")
		require.Equal(t, placement.EventReady, last.Event)
		require.Equal(t, "old", e.Placement().Worker)
	})
}

func TestAPlacementThatLostItsWorkerIsReported(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Record)
		code   placement.Code
	}{
		{"ready", nil, placement.CodeWorkerLost},
		{"loading", loading, placement.CodeStartFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				cl := w.relic("p", c.change)
				w.d.AdoptPlacement(cl, nil, nil)
				w.start()
				last := w.follow(cl.Entry)
				require.Equal(t, placement.EventFailed, last.Event)
				require.Equal(t, c.code, last.Error.Code)
				require.Contains(t, last.Error.Message, "gone when the agent came back")
				<-cl.Entry.Done()
				require.Equal(t, 2, w.device().Free)
			})
		})
	}
}

func TestAStartGoesOnWhereTheOldAgentLeftIt(t *testing.T) {
	for _, c := range []struct {
		name   string
		worker func(*world) Worker
		change func(*Record)
		held   bool
		loads  int
	}{
		{"it was loading", func(w *world) Worker {
			f := w.vllm.add("old", "loading")
			f.placement = "p"
			f.servesAfter(time.Second)
			return f
		}, loading, true, 0},
		{"it served before the agent was back", func(w *world) Worker { f := w.vllm.add("old", "serving"); f.placement = "p"; return f }, loading, true, 0},
		{"half of it was told", func(w *world) Worker { f := w.vllm.add("old", "loading"); f.placement = "p"; return f }, loading, false, 1},
		{"it was not told yet", func(w *world) Worker { return w.vllm.add("old", "warm") }, loading, false, 1},
		{"it had no worker yet", func(*world) Worker { return nil }, func(r *Record) { loading(r); r.WorkerRecord = nil }, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				cl := w.relic("p", c.change)
				if c.held {
					cl.Endpoint.HandOver()
				}
				w.d.AdoptPlacement(cl, c.worker(w), nil)
				w.start()
				require.Equal(t, placement.EventReady, w.follow(cl.Entry).Event)
				require.Equal(t, 1, w.device().Busy)
				require.Len(t, w.vllm.worker(cl.Entry.Placement().Worker).loads, c.loads)
			})
		})
	}
}

func TestAnAdoptedStartNeedsAFollowerToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.hang()
		old := w.vllm.add("old", "loading")
		old.placement = "p"
		cl := w.relic("p", func(r *Record) { loading(r); r.Deadline = time.Now().Add(time.Hour) })
		cl.Endpoint.HandOver()
		w.d.AdoptPlacement(cl, old, nil)
		w.start()
		<-cl.Entry.Done()
		require.Contains(t, cl.Entry.Placement().Reason, "nobody followed")
		require.Len(t, old.stopped(), 1)
	})
}

func TestAnEndThatWasDecidedIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		old := w.vllm.add("old", "serving")
		cl := w.relic("p", func(r *Record) { r.Ending = placement.Released })
		w.d.AdoptPlacement(cl, old, nil)
		w.start()
		<-cl.Entry.Done()
		require.Equal(t, placement.Released, cl.Entry.Placement().State)
		require.NotContains(t, w.vllm.alive(), "old")
	})
}

func TestAStartThatCannotBePreparedAgainFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		cl := w.relic("p", func(r *Record) { loading(r); r.WorkerRecord = nil })
		w.d.AdoptPlacement(cl, nil, placement.Errorf(placement.CodeModelNotFound, "the model is gone"))
		w.start()
		require.Equal(t, placement.CodeModelNotFound, w.follow(cl.Entry).Error.Code)
	})
}

func TestAWorkerNobodyCanExplainKeepsItsSlotUntilItIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		known := w.vllm.add("strange", "serving")
		w.d.AdoptStranger(known.Info(), "no journal knows it", known, nil)
		var alive atomic.Bool
		alive.Store(true)
		w.d.AdoptStranger(Info{ID: "mute"}, "it does not answer", nil, alive.Load)
		require.Equal(t, 2, w.device().Quarantined)
		w.start()
		_, refusal := w.claim("p")
		require.Equal(t, placement.CodeNoCapacity, refusal.Code)
		time.Sleep(time.Hour)
		require.Empty(t, known.stopped(), "it is never ended")
		require.Equal(t, "quarantined", w.d.View().Workers[0].State)
		known.die("by itself")
		alive.Store(false)
		time.Sleep(time.Minute)
		require.Equal(t, 2, w.device().Free)
	})
}

// More is found than the operator allows now: everything is kept, nothing fits.
func TestFewerSlotsThanPlacementsKeepThemAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Slots = 1 })
		for _, id := range []string{"a", "b", "c"} {
			old := w.vllm.add("old"+id, "serving")
			w.d.AdoptPlacement(w.relic(id, nil), old, nil)
		}
		w.start()
		time.Sleep(time.Second)
		require.Equal(t, 3, w.device().Slots)
		require.Equal(t, 3, w.device().Busy)
		_, err := w.d.Release(t.Context(), w.book.Get("a"), 0)
		require.NoError(t, err)
		_, refusal := w.claim("d")
		require.Equal(t, placement.CodeNoCapacity, refusal.Code)
	})
}

func TestAnUnreachableWorkerFailsItsPlacementAndIsNotEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		cl := w.relic("p", nil)
		w.d.AdoptStranger(Info{ID: "old"}, "it does not answer", nil, func() bool { return true })
		w.d.AdoptPlacement(cl, nil, errors.New("its worker runs and cannot be reached"))
		w.start()
		<-cl.Entry.Done()
		require.Equal(t, placement.Failed, cl.Entry.Placement().State)
		require.Equal(t, 1, w.device().Quarantined)
		require.Equal(t, 1, w.device().Free)
	})
}
