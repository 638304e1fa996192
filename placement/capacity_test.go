package placement

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

func drawWord(t *rapid.T, label string) Capacity {
	return Capacity{
		Epoch: rapid.Int64Range(0, 2).Draw(t, label+" epoch"), Generation: rapid.Uint64Range(0, 2).Draw(t, label+" generation"),
		Summary: rapid.Bool().Draw(t, label+" summary"),
	}
}

// Newer must be a strict order, or two members that hear the same words in another
// order would end with different ones.
func TestNewerIsAStrictOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawWord(t, "a"), drawWord(t, "b"), drawWord(t, "c")
		same := a.Epoch == b.Epoch && a.Generation == b.Generation && a.Summary == b.Summary
		switch {
		case a.Newer(a):
			t.Fatal("newer than itself")
		case a.Newer(b) && b.Newer(a):
			t.Fatal("each newer than the other")
		case !same && !a.Newer(b) && !b.Newer(a):
			t.Fatal("neither is newer")
		case a.Newer(b) && b.Newer(c) && !a.Newer(c):
			t.Fatal("not transitive")
		}
	})
}

func TestALaterLifeIsNewerThanAnyGeneration(t *testing.T) {
	assert.True(t, Capacity{Epoch: 2, Generation: 1}.Newer(Capacity{Epoch: 1, Generation: 99}))
	assert.False(t, Capacity{Epoch: 1, Generation: 99}.Newer(Capacity{Epoch: 2}))
	assert.True(t, Capacity{}.Newer(Capacity{Summary: true}))
}

func TestTotalsAddUpDevices(t *testing.T) {
	slots, free, busy, quarantined, warm := Capacity{Devices: []Device{
		{Slots: 4, Free: 1, Busy: 2, Quarantined: 1, Warm: map[string]int{"a": 1, "b": 1}}, {Slots: 1, Free: 1},
	}}.Totals()
	assert.Equal(t, []int{5, 2, 2, 1, 2}, []int{slots, free, busy, quarantined, warm})
}

func TestSnapshotSortsACopy(t *testing.T) {
	in := []NodeView{{Capacity: Capacity{Node: "b"}}, {Capacity: Capacity{Node: "a"}}}
	s := NewSnapshot(in, nil)
	assert.Equal(t, "a", s.Nodes[0].Node)
	assert.Equal(t, "b", in[0].Node, "the caller's slice keeps its order")
}

func TestOnlyThreeEventsEndAStream(t *testing.T) {
	for event, last := range map[string]bool{
		EventQueued: false, EventAssigned: false, EventAccepted: false, EventPhase: false, EventRetry: false,
		EventReady: true, EventFailed: true, EventReleased: true,
	} {
		assert.Equal(t, last, Progress{Event: event}.Last(), event)
	}
}
