package api

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestAServerThatDropsEveryKeptConnectionIsAskedOnANewOne: as one that restarts does.
func TestAServerThatDropsEveryKeptConnectionIsAskedOnANewOne(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	const kept = 4
	var together, serving sync.WaitGroup
	together.Add(kept)
	once := func(c net.Conn, wait bool) bool {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return false
		}
		_, _ = io.Copy(io.Discard, req.Body)
		if wait {
			together.Done()
			together.Wait() // so that each of the first requests takes a connection
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
		return true
	}
	serving.Go(func() {
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				if once(c, n < kept) {
					_, _ = http.ReadRequest(bufio.NewReader(c)) // the second is taken, and dropped
				}
			})
		}
	})
	conn, err := NewConn(ln.Addr().String(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(); _ = ln.Close(); serving.Wait() })
	var first sync.WaitGroup
	for range kept {
		first.Go(func() {
			assert.NoError(t, conn.Do(t.Context(), http.MethodPut, "/v1/placements/p", struct{}{}, nil))
		})
	}
	first.Wait()
	require.NoError(t, conn.Do(t.Context(), http.MethodPut, "/v1/placements/p", struct{}{}, nil))
	require.NoError(t, conn.Do(t.Context(), http.MethodDelete, "/v1/placements/p", nil, nil))
	require.NoError(t, conn.Do(t.Context(), http.MethodGet, "/v1/node", nil, nil))
}

// TestWhatIsNotHeardInTimeIsNotRepeatedForEver: a claim must not arrive when the network
// is whole again and its sender has turned to another node.
func TestWhatIsNotHeardInTimeIsNotRepeatedForEver(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	c, err := NewTransport(nil).DialContext(t.Context(), "tcp", ln.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	var ms int
	require.NoError(t, raw.Control(func(fd uintptr) { ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }))
	require.NoError(t, err)
	assert.EqualValues(t, unheardFor.Milliseconds(), ms)
}
