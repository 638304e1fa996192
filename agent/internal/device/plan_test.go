package device

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestPlan(t *testing.T) {
	one := []Target{{"v", 1, true}}
	warm := func(ids ...string) (out []Parked) {
		for _, id := range ids {
			out = append(out, Parked{id, "v", Warm})
		}
		return out
	}
	for _, c := range []struct {
		name    string
		targets []Target
		have    Have
		want    []Action
	}{
		{"an empty device forks", one, Have{Slots: 1}, []Action{{Fork: "v"}}},
		{"enough is enough", one, Have{Slots: 1, Parked: warm("a")}, nil},
		{"a fork under way counts", one, Have{Slots: 1, Parked: []Parked{{"a", "v", Forking}}}, nil},
		{"one that is retiring does not", one, Have{Slots: 1, Parked: []Parked{{"a", "v", Retiring}}}, []Action{{Fork: "v"}}},
		{"no zygote, no fork", []Target{{"v", 1, false}}, Have{Slots: 1}, nil},
		{"no zygote keeps what is warm", []Target{{"v", 1, false}}, Have{Slots: 1, Parked: warm("a")}, nil},
		{"a full device parks nothing", one, Have{Slots: 1, Busy: 1}, nil},
		{"a full device gives its parked up", one, Have{Slots: 1, Busy: 1, Parked: warm("a")}, []Action{{Retire: "a"}}},
		{"a quarantined slot is not free", one, Have{Slots: 1, Quarantined: 1, Parked: warm("a")}, []Action{{Retire: "a"}}},
		{"never more than free slots", []Target{{"v", 5, true}}, Have{Slots: 3, Busy: 1}, []Action{{Fork: "v"}, {Fork: "v"}}},
		{"the newest goes first", one, Have{Slots: 2, Parked: warm("old", "new")}, []Action{{Retire: "new"}}},
		{"a lower target retires", []Target{{"v", 0, true}}, Have{Slots: 2, Parked: warm("a", "b")}, []Action{{Retire: "b"}, {Retire: "a"}}},
		{"draining parks nothing", one, Have{Slots: 2, Draining: true, Parked: warm("a")}, []Action{{Retire: "a"}}},
		{"each runtime for itself", []Target{{"u", 1, true}, {"v", 1, true}}, Have{Slots: 1, Parked: warm("a")}, []Action{{Fork: "u"}}},
		{"a removed runtime is cleared away", nil, Have{Slots: 1, Parked: warm("a")}, []Action{{Retire: "a"}}},
		{"more busy than slots", one, Have{Slots: 1, Busy: 2}, nil},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, Plan(c.targets, c.have)) })
	}
}

// Carrying out a plan again and again leads to the targets and then to rest, and
// never does anything that the targets do not ask for.
func TestPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"a", "b", "c"}[:rapid.IntRange(1, 3).Draw(t, "runtimes")]
		var targets []Target
		for _, n := range names {
			targets = append(targets, Target{n, rapid.IntRange(0, 4).Draw(t, "warm"), rapid.Bool().Draw(t, "forkable")})
		}
		h := Have{Slots: rapid.IntRange(1, 6).Draw(t, "slots"), Draining: rapid.Bool().Draw(t, "draining")}
		h.Busy = rapid.IntRange(0, h.Slots).Draw(t, "busy")
		h.Quarantined = rapid.IntRange(0, h.Slots-h.Busy).Draw(t, "quarantined")
		for i := range rapid.IntRange(0, 8).Draw(t, "parked") {
			h.Parked = append(h.Parked, Parked{fmt.Sprint("p", i), rapid.SampledFrom(append(names, "gone")).Draw(t, "of"),
				rapid.SampledFrom([]ParkState{Forking, Warm, Retiring}).Draw(t, "state")})
		}
		id := 0
		for range 4 {
			for _, a := range Plan(targets, h) {
				if a.Fork != "" {
					id++
					h.Parked = append(h.Parked, Parked{fmt.Sprint("new", id), a.Fork, Forking})
				}
				for i := range h.Parked {
					if h.Parked[i].ID == a.Retire {
						require.Equal(t, Warm, h.Parked[i].State)
						h.Parked[i].State = Retiring
					}
				}
			}
			var next []Parked // what was under way is over
			for _, p := range h.Parked {
				switch p.State {
				case Forking:
					p.State = Warm
					next = append(next, p)
				case Warm:
					next = append(next, p)
				}
			}
			h.Parked = next
		}
		require.Empty(t, Plan(targets, h), "at rest")
		for _, tg := range targets {
			n := 0
			for _, p := range h.Parked {
				if p.Runtime == tg.Runtime {
					n++
				}
			}
			want := min(tg.Warm, h.Free())
			if h.Draining {
				want = 0
			}
			require.LessOrEqual(t, n, want)
			if tg.Forkable {
				require.Equal(t, want, n)
			}
		}
	})
}
