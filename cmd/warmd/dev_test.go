package main

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// The seed of `warmd dev --nodes N` listens on one, and so does what the tests stop and
// start again.
func TestAPortOfAFreeAddressIsNobodyElses(t *testing.T) {
	free, err := freeAddress()
	require.NoError(t, err)
	theirs, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer theirs.Close()
	same := netip.AddrPortFrom(free.Addr(), theirs.Addr().(*net.TCPAddr).AddrPort().Port())
	ours, err := net.Listen("tcp", same.String())
	require.NoError(t, err, "the worst case: they were given the same port")
	require.NoError(t, ours.Close())
}
