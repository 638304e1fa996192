package gossiptest

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func pair(seed uint64) (*Network, *Transport, *Transport) {
	n := NewNetwork(seed)
	return n, n.Transport("a"), n.Transport("b")
}

func send(t *testing.T, from, to *Transport, times int) (arrived int) {
	t.Helper()
	for range times {
		_, err := from.WriteTo([]byte("x"), to.addr)
		require.NoError(t, err)
	}
	for len(to.packets) > 0 {
		p := <-to.packets
		assert.Equal(t, from.addr, p.From.String())
		arrived++
	}
	return arrived
}

func TestPacketsArrive(t *testing.T) {
	n, a, b := pair(1)
	assert.Equal(t, 10, send(t, a, b, 10))
	packets, bytes := n.Traffic()
	assert.Equal(t, []int{10, 10}, []int{packets, bytes})
	_, err := a.WriteTo([]byte("x"), "10.9.9.9:1")
	assert.NoError(t, err, "a packet to nobody is lost, as on a network")
}

func TestSenderMayReuseItsBuffer(t *testing.T) {
	_, a, b := pair(1)
	buf := []byte("first")
	_, err := a.WriteTo(buf, b.addr)
	require.NoError(t, err)
	copy(buf, "XXXXX")
	assert.Equal(t, "first", string((<-b.packets).Buf))
}

func TestLossIsAFunctionOfTheSeed(t *testing.T) {
	counts := map[uint64]int{}
	for _, seed := range []uint64{1, 2, 1} {
		n, a, b := pair(seed)
		n.SetLoss(0.3)
		got := send(t, a, b, 1000)
		assert.InDelta(t, 700, got, 60)
		if before, ok := counts[seed]; ok {
			assert.Equal(t, before, got)
		}
		counts[seed] = got
	}
}

func TestFullInboxDropsInsteadOfBlocking(t *testing.T) {
	_, a, b := pair(1)
	assert.Equal(t, inbox, send(t, a, b, inbox+500))
}

func TestCutIsOneWayForPacketsAndTotalForStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(1)
		n.Cut([]string{"a"}, []string{"b"})
		assert.Zero(t, send(t, a, b, 10))
		assert.Equal(t, 10, send(t, b, a, 10))
		for _, d := range [][2]*Transport{{a, b}, {b, a}} {
			begin := time.Now()
			_, err := d[0].DialTimeout(d[1].addr, 5*time.Second)
			assert.ErrorIs(t, err, errTimeout)
			assert.Equal(t, 5*time.Second, time.Since(begin))
		}
		n.Heal()
		assert.Equal(t, 10, send(t, a, b, 10))
	})
}

func TestUnpluggedNodeHearsNobodyUntilPlugged(t *testing.T) {
	n, a, b := pair(1)
	c := n.Transport("c")
	n.Unplug("a")
	assert.Zero(t, send(t, a, b, 5)+send(t, b, a, 5)+send(t, c, a, 5))
	assert.Equal(t, 5, send(t, b, c, 5))
	n.Plug("a")
	assert.Equal(t, 10, send(t, a, b, 5)+send(t, c, a, 5))
}

func TestDelayedPacketsOvertakeEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(1)
		n.SetDelay(100 * time.Millisecond)
		for i := range 50 {
			_, err := a.WriteTo([]byte{byte(i)}, b.addr)
			require.NoError(t, err)
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		require.Len(t, b.packets, 50)
		inOrder := true
		for last := -1; len(b.packets) > 0; {
			i := int((<-b.packets).Buf[0])
			inOrder = inOrder && i > last
			last = i
		}
		assert.False(t, inOrder)
	})
}

func TestStreamCarriesBytesAndShutdownHangsUp(t *testing.T) {
	_, a, b := pair(1)
	conn, err := a.DialTimeout(b.addr, time.Second)
	require.NoError(t, err)
	go func() { _, _ = conn.Write([]byte("hello")); _ = conn.Close() }()
	got, err := io.ReadAll(<-b.streams)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(got))

	waiting, err := a.DialTimeout(b.addr, time.Second)
	require.NoError(t, err)
	require.NoError(t, b.Shutdown())
	require.NoError(t, b.Shutdown())
	_, err = waiting.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF, "a caller that nobody answered is not left waiting")
	_, err = a.DialTimeout(b.addr, time.Second)
	assert.ErrorContains(t, err, "connection refused")
	assert.Zero(t, send(t, a, b, 1))
}

func TestNameKeepsItsAddressInTheNextLife(t *testing.T) {
	n, a, b := pair(1)
	require.NoError(t, b.Shutdown())
	again := n.Transport("b")
	assert.Equal(t, n.Addr("b"), again.addr)
	assert.Equal(t, 3, send(t, a, again, 3))
	assert.Empty(t, b.packets)
}
