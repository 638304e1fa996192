package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits into sun_path with its NUL.
const maxSocketPath = 107

// checkSocketPath names the path and what to do: the kernel's own message for a
// long one is "invalid argument".
func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("socket path %s has %d bytes, the kernel takes %d: use a shorter run dir or runtime name", path, len(path), maxSocketPath)
	}
	return nil
}

// conn is one connection to a zygote or a worker half. Any number of goroutines
// may call; one goroutine must be in read for the answers to arrive.
type conn struct {
	sock *net.UnixConn
	// write is held for a whole line: it must leave in one piece, with its fds.
	write sync.Mutex

	mu      sync.Mutex // guards what follows
	pending map[int64]chan message
	last    int64
	err     error // why it ended
	done    chan struct{}
}

// dial connects; it does not say hello.
func dial(ctx context.Context, path string) (*conn, error) {
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect control socket: %w", err)
	}
	return newConn(c.(*net.UnixConn)), nil
}

func newConn(sock *net.UnixConn) *conn {
	return &conn{sock: sock, pending: map[int64]chan message{}, done: make(chan struct{})}
}

// peer is the process that listens at the other end, as the kernel knows it:
// good before the other end has answered anything.
func (c *conn) peer() (Proc, bool) {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return Proc{}, false
	}
	var cred *unix.Ucred
	_ = raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || cred == nil {
		return Proc{}, false
	}
	return FindProc(int(cred.Pid))
}

// read receives until the connection ends and hands every event to onEvent, in
// order. It fails all calls that still wait, and returns why it ended.
func (c *conn) read(onEvent func(kind string, raw []byte)) error {
	r := bufio.NewReaderSize(c.sock, 64<<10)
	for {
		line, err := readLine(r)
		if err != nil {
			c.end(err)
			return err
		}
		m, err := decodeMessage(line)
		if err != nil {
			c.end(err)
			return err
		}
		if m.event != "" {
			onEvent(m.event, m.raw)
			continue
		}
		c.mu.Lock()
		ch := c.pending[m.id]
		if m.isID {
			delete(c.pending, m.id)
		}
		c.mu.Unlock()
		if ch != nil && m.isID {
			ch <- m // has room for one
		}
	}
}

// call sends a request, with files by SCM_RIGHTS, and waits for its answer. The
// files stay the caller's. A refusal is a *RemoteError.
func (c *conn) call(ctx context.Context, op string, req, out any, files ...*os.File) error {
	ch := make(chan message, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return fmt.Errorf("call %s: %w", op, c.err)
	}
	c.last++
	id := c.last
	c.pending[id] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
	}()
	line, err := encodeRequest(id, op, req)
	if err != nil {
		return err
	}
	if err := c.send(ctx, line, files); err != nil {
		return fmt.Errorf("call %s: %w", op, err)
	}
	select {
	case m := <-ch:
		return answer(op, m, out)
	case <-c.done:
	case <-ctx.Done():
	}
	select { // the answer may have come together with the end
	case m := <-ch:
		return answer(op, m, out)
	default:
	}
	if ctx.Err() != nil {
		return fmt.Errorf("call %s: no answer: %w", op, ctx.Err())
	}
	return fmt.Errorf("call %s: %w", op, c.cause())
}

func answer(op string, m message, out any) error {
	if m.err != nil {
		return fmt.Errorf("call %s: %w", op, m.err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.raw, out); err != nil {
		return fmt.Errorf("decode answer to %s: %w", op, err)
	}
	return nil
}

// send writes one line. When that breaks in the middle the connection is of no
// more use, since the other end has half a line.
func (c *conn) send(ctx context.Context, line []byte, files []*os.File) error {
	c.write.Lock()
	defer c.write.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = c.sock.SetWriteDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			_ = c.sock.SetWriteDeadline(time.Time{})
		}
	}()
	n := 0
	if len(files) > 0 {
		sent, err := c.sendFiles(line, files)
		if err != nil {
			c.end(err)
			return err
		}
		n = sent
	}
	if n < len(line) {
		if _, err := c.sock.Write(line[n:]); err != nil {
			c.end(err)
			return err
		}
	}
	return nil
}

// sendFiles writes what fits of line together with the files. It takes the fds by
// SyscallConn: File.Fd would make a listening socket block for its owner, too.
func (c *conn) sendFiles(line []byte, files []*os.File) (int, error) {
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return 0, err
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return 0, err
		}
	}
	n, _, err := c.sock.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
	runtime.KeepAlive(files)
	return n, err
}

// end closes the connection, once; later calls fail with err.
func (c *conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("control connection ended: %w", err)
	close(c.done)
	_ = c.sock.Close()
}

var errClosed = errors.New("closed")

// close ends it from our side: to the other end an agent went away.
func (c *conn) close() { c.end(errClosed) }

func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}
