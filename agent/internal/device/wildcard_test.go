package device

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

func TestAnEngineThatListensEverywhereIsRefused(t *testing.T) {
	for addr, refused := range map[string]bool{"127.0.0.1:0": false, "0.0.0.0:0": true, "[::]:0": true} {
		ln, err := net.Listen("tcp", addr)
		require.NoError(t, err)
		e := &Endpoint{Port: ln.Addr().(*net.TCPAddr).Port, host: "127.0.0.1"}
		err = e.onEveryAddress()
		if refused {
			require.Equal(t, placement.CodeStartFailed, placement.AsError(err).Code, addr)
			require.ErrorContains(t, err, "--host {host}")
		} else {
			require.NoError(t, err, addr)
		}
		require.NoError(t, (&Endpoint{Port: e.Port, host: "0.0.0.0"}).onEveryAddress())
		require.NoError(t, ln.Close())
	}
	require.NoError(t, (*Endpoint)(nil).onEveryAddress())
}
