package gossip

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"warmd/placement"
)

// What the fleet promises about its times holds for the smallest one that is used: three
// hosts, and three hosts with a coordinator each. Which member probes which is chance,
// so every figure is the worst of several rounds.
const rounds = 30

// hosts are three hosts; the last one is the one that things happen to.
func hosts(t *testing.T, coordinators bool, happen func(f *fleet, last, rest []string)) {
	t.Helper()
	inBubble(t, func(f *fleet) {
		var last, rest []string
		for i := range 3 {
			names := []string{fmt.Sprintf("node-%d", i)}
			f.start(names[0], false)
			if coordinators {
				names = append(names, fmt.Sprintf("coordinator-%d", i))
				f.start(names[1], true)
			}
			rest, last = append(rest, last...), names
		}
		f.awaitAll(time.Minute, "all members", alive(len(f.members)))
		time.Sleep(30 * time.Second)
		happen(f, last, rest)
	})
}

func each(t *testing.T, test func(t *testing.T, coordinators bool)) {
	t.Run("agents", func(t *testing.T) { test(t, false) })
	t.Run("agents and coordinators", func(t *testing.T) { test(t, true) })
}

func TestTheLossOfAHostIsNoticedWithin15Seconds(t *testing.T) {
	each(t, func(t *testing.T, coordinators bool) {
		var worst time.Duration
		for range rounds {
			hosts(t, coordinators, func(f *fleet, last, rest []string) {
				f.net.SetLoss(0.05)
				f.net.Partition(last, rest)
				begin := time.Now()
				for _, name := range rest {
					f.await(f.members[name], time.Minute, "the loss", func(v placement.Fleet) bool {
						return !slices.ContainsFunc(last, func(n string) bool { return node(v, n).Status != StatusFailed })
					})
				}
				worst = max(worst, time.Since(begin))
			})
		}
		t.Logf("noticed by all within %.1f s", worst.Seconds())
		assert.Less(t, worst, 15*time.Second)
	})
}

// Shorter than memberlist gossips to the dead, about as long, and far longer.
func TestAHostThatIsBackIsHeardOfWithin7Seconds(t *testing.T) {
	for _, away := range []time.Duration{12 * time.Second, 31 * time.Second, 2 * time.Minute} {
		t.Run(away.String(), func(t *testing.T) {
			each(t, func(t *testing.T, coordinators bool) {
				var worst time.Duration
				for range rounds {
					hosts(t, coordinators, func(f *fleet, last, rest []string) {
						f.net.Partition(last, rest)
						time.Sleep(away)
						f.net.Heal()
						begin := time.Now()
						f.awaitAll(time.Minute, "all members again", alive(len(f.members)))
						worst = max(worst, time.Since(begin))
					})
				}
				t.Logf("heard of by all within %.1f s", worst.Seconds())
				assert.Less(t, worst, 7*time.Second, "of the 10 s until it is reconciled")
			})
		})
	}
}
