package gossip

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

// A host that another lease of DHCP or another card has given another address is no
// stranger under a taken name. Members forget a dead one only as they come to it on
// their rounds, so the larger the fleet the longer they would refuse it.
func TestHostThatComesBackAtAnotherAddressIsKnownAtOnce(t *testing.T) {
	inBubble(t, func(f *fleet) {
		f.startNodes(32)
		f.awaitAll(time.Minute, "all nodes", alive(32))
		old := f.net.Addr("node-3")
		f.crash("node-3")
		f.awaitAll(30*time.Second, "the crash", status("node-3", StatusFailed))
		time.Sleep(reclaimAfter + time.Second) // the library asks for more than reclaimAfter

		f.net.Readdress("node-3")
		m := f.start("node-3", false)
		require.NotEqual(t, old, f.net.Addr("node-3"))
		first := m.latest()
		f.awaitAll(10*time.Second, "the host at its new address", func(v placement.Fleet) bool {
			d := node(v, "node-3")
			return d.Alive && d.Epoch == first.Epoch
		})
		f.await(m, 10*time.Second, "all nodes", alive(32))
	})
}
