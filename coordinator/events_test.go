package coordinator

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"

	"warmd/placement"
)

func TestEndOfAStartIsToldOnceWhoeverTellsIt(t *testing.T) {
	o := newOnce()
	ready := placement.Event{Node: "agent", Kind: "placement.ready", Placement: "p-1"}
	assert.True(t, o.first(ready))
	ready.Node = "coordinator"
	assert.False(t, o.first(ready))
	ready.Placement = "p-2"
	assert.True(t, o.first(ready))
	other := placement.Event{Kind: "worker.warm", Worker: "w"}
	for range 2 {
		assert.True(t, o.first(other), "other events may repeat")
	}
	for i := range 2 * onceKept {
		o.first(placement.Event{Kind: "placement.failed", Placement: fmt.Sprint(i)})
	}
	assert.LessOrEqual(t, len(o.told), onceKept, "memory is bounded")
}
