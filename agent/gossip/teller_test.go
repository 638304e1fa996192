package gossip

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"warmd/placement"
)

func exact(name string, generation uint64) func(placement.Fleet) bool {
	return func(f placement.Fleet) bool {
		v := node(f, name)
		return v.Generation == generation && !v.Summary
	}
}

func TestCoordinatorGetsExactWordsAndOthersTheSummary(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(8)
		c := f.start("coordinator", true)
		f.awaitAll(time.Minute, "everybody", alive(9))
		f.await(c, 5*time.Second, "an exact word of everybody", func(v placement.Fleet) bool {
			for i := range 8 {
				if !exact(fmt.Sprintf("node-%d", i), 1)(v) {
					return false
				}
			}
			return true
		})
		v := node(c.Members(), "node-4")
		want := f.members["node-4"].latest()
		assert.Equal(t, want, v.Capacity)

		summary := node(f.members["node-0"].Members(), "node-4")
		assert.True(t, summary.Summary)
		assert.Empty(t, summary.Devices[0].ID, "names are not gossiped")
		assert.Equal(t, want.Devices[0].Warm, summary.Devices[0].Warm)
		own := node(f.members["node-4"].Members(), "node-4")
		assert.Equal(t, want, own.Capacity, "a node knows itself exactly")
		assert.Zero(t, own.AgeSeconds)
	})
}

func TestCoordinatorHearsAChangeWithinMilliseconds(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(8)
		c := f.start("coordinator", true)
		f.awaitAll(time.Minute, "everybody", alive(9))
		f.await(c, 5*time.Second, "an exact word", exact("node-4", 1))
		m := f.members["node-4"]
		for range 2 { // a burst is one message
			m.SetCapacity(claimed(m.latest()))
		}
		took := f.await(c, time.Second, "the change", exact("node-4", 3))
		assert.LessOrEqual(t, took, 2*coalesce)
	})
}

// The coordinator holds back a slot until it hears the generation of its claim.
func TestChangeThatCameAndWentIsStillTold(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(4)
		c := f.start("coordinator", true)
		f.awaitAll(time.Minute, "everybody", alive(5))
		f.await(c, 5*time.Second, "an exact word", exact("node-2", 1))
		m := f.members["node-2"]
		before := m.latest()
		m.SetCapacity(claimed(before))
		before.Generation = 3
		m.SetCapacity(before)
		f.await(c, drift+coalesce, "generation 3", exact("node-2", 3))
	})
}

func TestLostExactWordIsRepeated(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(4)
		c := f.start("coordinator", true)
		f.awaitAll(time.Minute, "everybody", alive(5))
		f.await(c, 5*time.Second, "an exact word", exact("node-2", 1))
		m := f.members["node-2"]
		f.net.SetLoss(1)
		m.SetCapacity(claimed(m.latest()))
		time.Sleep(2 * coalesce)
		assert.False(t, exact("node-2", 2)(c.Members()), "the message is lost")
		f.net.SetLoss(0)
		f.await(c, repeat*6/5+coalesce, "the repetition", exact("node-2", 2))
	})
}

func TestExactWordTooBigForAPacketGoesByStream(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(2)
		c := f.start("coordinator", true)
		f.awaitAll(time.Minute, "everybody", alive(3))
		m := f.members["node-1"]
		big := claimed(m.latest())
		for i := range 200 {
			d := big.Devices[0]
			d.ID = fmt.Sprintf("MIG-%x", i*7919*7919*7919)
			for j := range 8 {
				d.Placements = append(d.Placements, fmt.Sprintf("p-%x", i*104729*(j+3)*15485863))
			}
			big.Devices = append(big.Devices, d)
		}
		m.SetCapacity(big)
		f.await(c, 5*time.Second, "the big word", exact("node-1", 2))
		assert.Len(t, node(c.Members(), "node-1").Devices, 201)
		f.await(f.members["node-0"], 10*time.Second, "the summary", generation("node-1", 2))
		slots, free, busy, _, _ := node(f.members["node-0"].Members(), "node-1").Totals()
		assert.Equal(t, []int{402, 201, 201}, []int{slots, free, busy}, "the summary of 201 devices still counts right")
	})
}

// A restarted coordinator may come back before anybody missed it.
func TestNextLifeOfACoordinatorIsToldAtOnce(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(4)
		c := f.start("coordinator", true)
		f.awaitAll(time.Minute, "everybody", alive(5))
		f.await(c, 5*time.Second, "an exact word", exact("node-2", 1))
		f.crash("coordinator")
		c = f.start("coordinator", true)
		f.await(c, 4*time.Second, "exact words again", func(v placement.Fleet) bool {
			return exact("node-0", 1)(v) && exact("node-1", 1)(v) && exact("node-2", 1)(v) && exact("node-3", 1)(v)
		})
	})
}

func TestHungCoordinatorHoldsUpNobody(t *testing.T) {
	begun, release, got := make(chan struct{}), make(chan struct{}), make(chan string, 10)
	p := newPost(func(to peer, msg []byte) {
		if string(msg) == "hang" {
			close(begun)
			<-release
		}
		got <- to.name + " " + string(msg)
	})
	p.put(peer{name: "hung"}, []byte("hang"))
	<-begun
	for i := range 5 {
		p.put(peer{name: "hung"}, fmt.Append(nil, i))
	}
	p.put(peer{name: "well"}, []byte("1"))
	assert.Equal(t, "well 1", <-got)
	close(release)
	assert.Equal(t, "hung hang", <-got)
	assert.Equal(t, "hung 4", <-got, "only the latest letter waits")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.run(ctx)
	p.put(peer{name: "well"}, []byte("2"))
	assert.Empty(t, got, "a closed post takes nothing")
}
