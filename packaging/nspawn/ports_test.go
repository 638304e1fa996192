package nspawn

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
	"warmd/placement"
)

// Promise 6 of issue 4: every listener, seen from a neighbour.

func TestNeighbourFindsOnlyWhatIsMeantToBeOpen(t *testing.T) {
	f := theFleet(t)
	got, err := f.Place(t.Context(), placement.Request{ID: "ports", Model: "any", Runtime: engineRuntime, Node: "h1", TimeoutSeconds: 60})
	require.NoError(t, err)
	defer f.empty(t)
	endpoint, err := netip.ParseAddrPort(got.Endpoint[len("http://"):])
	require.NoError(t, err)
	assert.Equal(t, f.nodes[0].Addr, endpoint.Addr().String(), "engines are reached on endpoint_host")

	for _, n := range f.nodes {
		meant := []int{2379, 2380, 7710, 7711, 7946, 7947} // etcd, agent, coordinator, gossip of both
		if n.Name == got.Node {
			meant = append(meant, int(endpoint.Port()))
		}
		slices.Sort(meant)
		assert.Equal(t, meant, lab.Scan(t, n.Addr), n.Name)
		assert.Equal(t, []int{7946, 7947}, outside(t, n, "udp"), n.Name)
		// The scan was of one address; what listens must not do so on another one.
		assert.Equal(t, meant, outside(t, n, "tcp"), n.Name)
		for _, l := range n.Listeners(t) {
			addr := netip.MustParseAddrPort(l.Addr).Addr()
			assert.False(t, addr.IsUnspecified(), "%s: %s listens on all interfaces: %s", n.Name, l.Who, l.Addr)
		}
	}

	_, err = f.Release(t.Context(), got.ID)
	require.NoError(t, err)
	host.Until(t, 30*time.Second, "a released engine's port is closed", func() error {
		if open := outside(t, f.nodes[0], "tcp"); slices.Contains(open, int(endpoint.Port())) {
			return fmt.Errorf("still %v", open)
		}
		return nil
	})
}

// outside are the ports that a host listens on at addresses others could reach.
func outside(t *testing.T, n *node, network string) (ports []int) {
	t.Helper()
	for _, l := range n.Listeners(t) {
		addr, err := netip.ParseAddrPort(l.Addr)
		require.NoError(t, err, l.Addr)
		if l.Network == network && !addr.Addr().IsLoopback() {
			ports = append(ports, int(addr.Port()))
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}
