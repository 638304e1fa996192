package gossip

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"

	"warmd/placement"
)

func word(epoch int64, generation uint64) placement.Capacity {
	return placement.Capacity{Node: "b", Epoch: epoch, Generation: generation, Devices: []placement.Device{{ID: "cpu-0"}}}
}

func summaryOf(c placement.Capacity) placement.Capacity {
	c.Summary = true
	return c
}

// viewOf is a's view of the member b, which is alive.
func viewOf(t *testing.T) *View {
	t.Helper()
	v := NewView("a")
	v.memberUp(peer{name: "b", ip: "10.0.0.2", port: 7946}, summaryOf(word(10, 5)), true)
	return v
}

func TestOlderWordIsDropped(t *testing.T) {
	for _, c := range []struct {
		name      string
		held, got placement.Capacity
		want      placement.Capacity
	}{
		{"later generation", word(10, 5), word(10, 6), word(10, 6)},
		{"older generation", word(10, 5), word(10, 4), word(10, 5)},
		{"later life", word(10, 5), word(11, 1), word(11, 1)},
		{"earlier life", word(10, 5), word(9, 99), word(10, 5)},
		{"exact beats the summary of its generation", summaryOf(word(10, 5)), word(10, 5), word(10, 5)},
		{"summary does not beat the exact word of its generation", word(10, 5), summaryOf(word(10, 5)), word(10, 5)},
		{"later summary beats an older exact word", word(10, 5), summaryOf(word(10, 6)), summaryOf(word(10, 6))},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := NewView("a")
			v.hear(c.held)
			v.hear(c.got)
			assert.Equal(t, c.want, node(v.Members(), "b").Capacity)
		})
	}
}

// Whatever the order of arrival, what stays is a word that nothing heard is newer than.
func TestViewKeepsTheNewestWord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := NewView("a")
		var all []placement.Capacity
		for range rapid.IntRange(1, 20).Draw(t, "words") {
			c := word(rapid.Int64Range(1, 3).Draw(t, "epoch"), rapid.Uint64Range(0, 4).Draw(t, "generation"))
			c.Summary = rapid.Bool().Draw(t, "summary")
			all = append(all, c)
			if rapid.Bool().Draw(t, "refusal") {
				v.Apply(c)
			} else {
				v.hear(c)
			}
		}
		kept := node(v.Members(), "b").Capacity
		for _, c := range all {
			if c.Newer(kept) {
				t.Fatalf("%+v was heard, %+v is kept", c, kept)
			}
		}
	})
}

func TestSameGenerationAgainIsFresherButNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := viewOf(t)
		<-v.Changed()
		time.Sleep(20 * time.Second)
		assert.EqualValues(t, 20, node(v.Members(), "b").AgeSeconds)
		v.hear(summaryOf(word(10, 5)))
		assert.Zero(t, node(v.Members(), "b").AgeSeconds)
		assert.Empty(t, v.Changed())

		time.Sleep(20 * time.Second)
		v.confirm("b", 10, 6)
		assert.EqualValues(t, 20, node(v.Members(), "b").AgeSeconds, "a generation we have not heard confirms nothing")
		v.confirm("b", 10, 5)
		assert.Zero(t, node(v.Members(), "b").AgeSeconds)
	})
}

func TestFailedCallOutweighsGossipForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := viewOf(t)
		v.MarkUnreachable("b")
		v.MarkUnreachable("nobody")
		v.MarkUnreachable("a")
		assert.Equal(t, StatusSuspect, node(v.Members(), "b").Status)
		assert.False(t, node(v.Members(), "b").Alive)
		assert.True(t, node(v.Members(), "a").Alive, "a member never doubts itself")
		assert.Len(t, v.Members().Nodes, 2)

		v.hear(summaryOf(word(10, 5)))
		assert.False(t, node(v.Members(), "b").Alive, "no news")
		v.hear(summaryOf(word(10, 6)))
		assert.True(t, node(v.Members(), "b").Alive, "it said something new")

		v.MarkUnreachable("b")
		v.Apply(word(10, 3))
		assert.True(t, node(v.Members(), "b").Alive, "it answered somebody, even with an old word")
		assert.EqualValues(t, 6, node(v.Members(), "b").Generation)

		v.MarkUnreachable("b")
		time.Sleep(suspectFor)
		assert.True(t, node(v.Members(), "b").Alive, "gossip is believed again")
	})
}

func TestAnswerOfAFailedNodeMakesItAlive(t *testing.T) {
	v := viewOf(t)
	v.memberDown("b", StatusFailed)
	assert.Equal(t, StatusFailed, node(v.Members(), "b").Status)
	v.hear(word(10, 7))
	assert.Equal(t, StatusFailed, node(v.Members(), "b").Status, "that we hear it does not mean that it hears us")
	v.Apply(word(10, 8))
	assert.Equal(t, StatusAlive, node(v.Members(), "b").Status)
}

func TestLeavingAndFailingMayComeInAnyOrder(t *testing.T) {
	for _, order := range [][]string{{StatusLeft, StatusFailed}, {StatusFailed, StatusLeft}} {
		v := viewOf(t)
		for _, s := range order {
			v.memberDown("b", s)
		}
		assert.Equal(t, StatusLeft, node(v.Members(), "b").Status)
	}
}

// A host whose clock went backwards would otherwise stay unheard for ever.
func TestJoinAfterAFailureCountsWhateverItsEpoch(t *testing.T) {
	v := viewOf(t)
	v.hear(word(10, 6))
	v.memberDown("b", StatusFailed)
	v.memberUp(peer{name: "b"}, summaryOf(word(3, 1)), true)
	got := node(v.Members(), "b")
	assert.EqualValues(t, 3, got.Epoch)
	assert.True(t, got.Alive)

	v.memberDown("b", StatusFailed)
	v.hear(word(3, 2))
	v.memberUp(peer{name: "b"}, summaryOf(word(3, 1)), true)
	assert.EqualValues(t, 2, node(v.Members(), "b").Generation, "the same life keeps its newest word")
}

func TestNodeWhoseAgentIsRestartedIsThereAllTheTime(t *testing.T) {
	v := viewOf(t)
	v.hear(word(10, 6))
	v.memberDown("b", StatusLeft)
	v.memberUp(peer{name: "b"}, placement.Capacity{Node: "b", Epoch: 5, Summary: true}, true)
	got := node(v.Members(), "b")
	assert.True(t, got.Alive)
	assert.Equal(t, word(10, 6).Devices, got.Devices, "what it said before, until it says something")

	v.memberUp(peer{name: "b"}, summaryOf(word(3, 1)), true)
	assert.EqualValues(t, 3, node(v.Members(), "b").Epoch, "its first word counts, whatever its epoch")
}

func TestUnreadableSummaryStillNamesTheMember(t *testing.T) {
	v := NewView("a")
	v.memberUp(peer{name: "b"}, placement.Capacity{}, false)
	got := node(v.Members(), "b")
	assert.True(t, got.Alive)
	assert.Empty(t, got.Devices)
}

func TestNobodyElseSpeaksForThisMember(t *testing.T) {
	v := NewView("b")
	v.setSelf(word(1, 1))
	v.hear(word(99, 99))
	v.Apply(word(99, 99))
	v.memberUp(peer{name: "b"}, word(99, 99), true)
	v.memberDown("b", StatusFailed)
	got := v.Members().Nodes
	assert.Equal(t, word(1, 1), got[0].Capacity)
	assert.True(t, got[0].Alive)
	assert.Len(t, got, 1)
}

func TestAnAnswerOfOurOwnNodeCountsBeforeItPublishes(t *testing.T) {
	v := NewView("b")
	v.setSelf(word(1, 1))
	v.Apply(word(1, 3))
	v.setSelf(word(1, 2)) // made before the answer, published after it
	assert.Equal(t, word(1, 3), v.Members().Nodes[0].Capacity)
	v.setSelf(word(1, 4))
	assert.Equal(t, word(1, 4), v.Members().Nodes[0].Capacity)
}

func TestViewForgetsAndStaysBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := viewOf(t)
		for i := range maxNodes + 10 {
			c := word(1, 1)
			c.Node = fmt.Sprintf("stranger-%d", i)
			v.hear(c)
		}
		v.hear(placement.Capacity{})
		assert.Len(t, v.Members().Nodes, maxNodes)
		time.Sleep(strangerFor + time.Second)
		assert.Len(t, v.Members().Nodes, 2, "strangers that memberlist never named are forgotten")
		v.memberDown("b", StatusFailed)
		time.Sleep(keepFailed)
		assert.Len(t, v.Members().Nodes, 2, "a failed node is shown for a day")
		time.Sleep(time.Second)
		assert.Len(t, v.Members().Nodes, 1)
	})
}

func TestFleetIsSortedByName(t *testing.T) {
	v := NewView("m")
	for _, name := range []string{"z", "b", "n"} {
		c := word(1, 1)
		c.Node = name
		v.hear(c)
	}
	var names []string
	for _, n := range v.Members().Nodes {
		names = append(names, n.Node)
	}
	assert.Equal(t, []string{"b", "m", "n", "z"}, names)
	assert.Equal(t, "m", v.Members().From)
}

func BenchmarkFleetOf10000(b *testing.B) {
	v := NewView("a")
	for i := range 10_000 {
		c := word(1, 1)
		c.Node = fmt.Sprintf("node-%d", i)
		v.memberUp(peer{name: c.Node}, c, true)
	}
	for b.Loop() {
		v.Members()
	}
}

func TestFleetShowsNodesAndMembersShowsCoordinatorsToo(t *testing.T) {
	v := NewView("a")
	v.setSelf(placement.Capacity{Node: "a", Epoch: 1, Coordinator: true})
	v.Apply(placement.Capacity{Node: "b", Epoch: 1, Devices: []placement.Device{{ID: "cpu-0"}}})
	if n := len(v.Members().Nodes); n != 2 {
		t.Errorf("%d members, want 2", n)
	}
	if f := v.Fleet(); len(f.Nodes) != 1 || f.Nodes[0].Node != "b" {
		t.Errorf("fleet %+v, want b alone: nothing runs on a coordinator", f.Nodes)
	}
}
