package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// peer is the other end of a connection, written by hand in each test.
func connect(t *testing.T, peer func(c *net.UnixConn, in *bufio.Reader)) (*conn, func() error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "w")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s", Net: "unix"})
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		peer(c, bufio.NewReader(c))
	}()
	c, err := dial(context.Background(), dir+"/s")
	require.NoError(t, err)
	read := make(chan error, 1)
	go func() { read <- c.read(func(string, []byte) {}) }()
	t.Cleanup(func() {
		c.close()
		_ = ln.Close()
		<-done
	})
	return c, func() error { return <-read }
}

func reply(c net.Conn, in *bufio.Reader, format string) {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return
	}
	var req struct {
		ID int64 `json:"id"`
	}
	_ = json.Unmarshal(line, &req)
	fmt.Fprintf(c, format+"\n", req.ID)
}

func TestRefusalIsTypedAndAHelloWithAnErrorFieldIsNone(t *testing.T) {
	c, _ := connect(t, func(c *net.UnixConn, in *bufio.Reader) {
		reply(c, in, `{"id":%d,"error":{"code":"gone","message":"not there"}}`)
		reply(c, in, `{"id":%d,"worker":"w1","error":{"code":"load_failed","message":"bad"}}`)
		reply(c, in, `{"id":%d,"error":null}`)
	})
	err := c.kill(context.Background(), Proc{1, 2}, 9)
	require.ErrorIs(t, err, ErrGone)
	require.ErrorContains(t, err, "call kill: gone: not there")
	var h halfHello
	require.NoError(t, c.call(context.Background(), "hello", nil, &h))
	require.Equal(t, "bad", h.Error.Message)
	require.NoError(t, c.call(context.Background(), "ping", nil, nil))
}

func TestAnswersFindTheirCallsInAnyOrder(t *testing.T) {
	c, _ := connect(t, func(c *net.UnixConn, in *bufio.Reader) {
		var ids []int64
		for range 3 {
			line, _ := in.ReadBytes('\n')
			var req struct{ ID, PID int64 }
			_ = json.Unmarshal(line, &req)
			ids = append(ids, req.ID)
		}
		fmt.Fprintln(c, `{"ev":"exit","pid":1}`)
		fmt.Fprintln(c, `{"id":999,"nobody":"asked"}`)
		for _, id := range slices.Backward(ids) {
			fmt.Fprintf(c, `{"id":%d,"pid":%d}`+"\n", id, 100+id)
		}
		_, _ = in.ReadBytes('\n')
	})
	out := make(chan error, 3)
	for range 3 {
		go func() {
			p, err := c.fork(context.Background(), forkRequest{})
			if err == nil && p.PID <= 100 {
				err = fmt.Errorf("pid %d", p.PID)
			}
			out <- err
		}()
	}
	for range 3 {
		require.NoError(t, <-out)
	}
}

func TestSilentPeerCostsNoMoreThanTheCallersPatience(t *testing.T) {
	c, _ := connect(t, func(c *net.UnixConn, in *bufio.Reader) { _, _ = io.Copy(io.Discard, in) })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.call(ctx, "ping", nil, nil), context.DeadlineExceeded)
	require.Empty(t, c.pending)
}

func TestPeerThatDoesNotReadIsGivenUp(t *testing.T) {
	block := make(chan struct{})
	c, _ := connect(t, func(*net.UnixConn, *bufio.Reader) { <-block })
	defer close(block)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	big := map[string]string{"x": strings.Repeat("x", 1<<19)}
	var err error
	for err == nil || ctx.Err() == nil {
		err = c.call(ctx, "fork", big, nil)
	}
	require.Error(t, c.call(context.Background(), "ping", nil, nil), "half a line is out: the connection is of no use")
}

func TestEndOfTheConnectionFailsWhoWaits(t *testing.T) {
	c, ended := connect(t, func(c *net.UnixConn, in *bufio.Reader) { _, _ = in.ReadBytes('\n') })
	require.ErrorContains(t, c.call(context.Background(), "ping", nil, nil), "call ping: control connection ended: EOF")
	require.Error(t, ended())
	require.Error(t, c.call(context.Background(), "ping", nil, nil))
}

func TestOverlongAndBrokenLinesEndTheConnection(t *testing.T) {
	for name, line := range map[string]string{
		"overlong": strings.Repeat("x", maxLine+10), "no JSON": "hello\n", "an array": "[1]\n",
		"a strange event": `{"ev":7}` + "\n", "a strange error": `{"id":1,"error":"x"}` + "\n", "half a line": `{"ev"`,
	} {
		t.Run(name, func(t *testing.T) {
			_, ended := connect(t, func(c *net.UnixConn, in *bufio.Reader) { _, _ = io.WriteString(c, line) })
			require.Error(t, ended())
		})
	}
}

func TestOverlongRequestIsNotSent(t *testing.T) {
	c, _ := connect(t, func(c *net.UnixConn, in *bufio.Reader) {
		reply(c, in, `{"id":%d}`)
	})
	err := c.call(context.Background(), "load", map[string]string{"x": strings.Repeat("x", maxLine)}, nil)
	require.ErrorIs(t, err, errLongLine)
	require.NoError(t, c.call(context.Background(), "ping", nil, nil), "the connection is still good")
}

func TestLongSocketPathIsRefusedByName(t *testing.T) {
	_, err := dial(context.Background(), "/"+strings.Repeat("x", 107))
	require.ErrorContains(t, err, "has 108 bytes, the kernel takes 107: use a shorter run dir")
	require.NoError(t, checkSocketPath("/"+strings.Repeat("x", 106)))
}

func FuzzDecodeMessage(f *testing.F) {
	for _, s := range []string{`{"id":1}`, `{"ev":"exit","pid":1}`, `{"id":1,"error":{"code":"gone"}}`, `{"id":null}`, `null`, `{}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decodeMessage(line)
		if err == nil && m.event != "" && m.isID {
			t.Fatal("an event is no reply")
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (a) b) S 1 2 3 0 0 0 0 0 0 0 4 5 0 0 0 0 1 0 99 0 7 0"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s, ok := parseStat(raw); ok && s.state == 0 {
			t.Fatal("parsed without a state")
		}
	})
}
