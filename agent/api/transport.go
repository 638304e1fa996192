package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"warmd/agent/api/access"
	"warmd/placement"
)

// Conn speaks JSON over HTTP to one server, by Unix socket or TCP. The agent's
// Client and the coordinator's are both made of it.
type Conn struct {
	base string
	http *http.Client
}

// MaxAnswer bounds an answer that is read whole.
const MaxAnswer = 64 << 20

// NewConn makes a Conn for an address: "unix:///run/warmd/agent.sock" or a path,
// "http://host:port", "host:port". rt overrides the transport (tests, and mutual TLS:
// see [NewTransport]); nil takes the default.
func NewConn(addr string, rt http.RoundTripper) (*Conn, error) {
	path, isUnix := strings.CutPrefix(addr, "unix://")
	if isUnix || strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, "./") {
		d := net.Dialer{Timeout: 5 * time.Second}
		t := &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, "unix", path)
			},
			MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second,
		}
		return &Conn{base: "http://warmd", http: &http.Client{Transport: t}}, nil
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, &placement.FieldError{Field: "server", Problem: fmt.Sprintf("%q must be unix:///path, http://host:port or https://host:port", addr)}
	}
	if rt == nil {
		rt = NewTransport(nil)
	}
	return &Conn{base: strings.TrimRight(u.String(), "/"), http: &http.Client{Transport: rt}}, nil
}

// unheardFor is how long a peer may leave unacknowledged what was sent to it.
const unheardFor = 5 * time.Second

// forgetful has the kernel give up what a peer does not acknowledge. Otherwise it repeats
// that for minutes, also after we have closed the connection: the claim that a node was
// given up for would arrive when the network is whole again, and start an engine that
// nobody wants (tcp(7), TCP_USER_TIMEOUT).
func forgetful(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unheardFor.Milliseconds()))
	})
	return errors.Join(err, failed)
}

// NewTransport is the transport of TCP connections; with a configuration, https
// addresses are called with it.
func NewTransport(c *tls.Config) *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, Control: forgetful}).DialContext,
		MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: 5 * time.Second, TLSClientConfig: c,
	}
}

// Close drops idle connections.
func (c *Conn) Close() { c.http.CloseIdleConnections() }

// Do sends in (nil: no body) and decodes the answer into out (nil: thrown away).
// A refusal comes back as *placement.Error; a server that cannot be reached as
// one with code unavailable that wraps nothing but says what to check.
func (c *Conn) Do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.Open(ctx, method, path, in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, MaxAnswer))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, MaxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("decode %s %s: %w", method, path, err)
	}
	return nil
}

// Open sends the request and returns the answer with its body still open, or the
// refusal as *placement.Error.
func (c *Conn) Open(ctx context.Context, method, path string, in any, header http.Header) (*http.Response, error) {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", method, path, err)
		}
	}
	resp, err := c.once(ctx, method, path, body, header)
	if err != nil && method != http.MethodPost && hungUp(err) && ctx.Err() == nil {
		resp, err = c.once(ctx, method, path, body, header)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, unreachable(err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	e := new(placement.Error)
	switch {
	case json.Unmarshal(raw, e) == nil && e.Code != "":
	case bytes.Contains(raw, []byte("HTTP request to an HTTPS server")): // net/http says it, before any handler
		e = placement.Errorf(placement.CodeUnauthorized, "the server at %s speaks TLS", c.base).WithHint("call https://%s", strings.TrimPrefix(c.base, "http://"))
	default:
		e = placement.Errorf(placement.CodeInternal, "%s %s: %s: %.200s", method, path, resp.Status, bytes.TrimSpace(raw))
	}
	return nil, e
}

func (c *Conn) once(ctx context.Context, method, path string, body []byte, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make %s %s: %w", method, path, err)
	}
	maps.Copy(req.Header, header)
	if method != http.MethodPost {
		// Not sent: it lets net/http take another connection by itself, as often as it finds
		// that one which was kept has been closed.
		req.Header["Idempotency-Key"] = nil
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.http.Do(req)
}

// hungUp reports whether the server closed the connection before it answered. One
// that restarts does so to a request that crosses its goodbye (golang/go#36819); all
// our methods but POST may be sent again.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Stream reads an NDJSON answer line by line until each returns false, the
// stream ends, or ctx is over.
func Stream[T any](ctx context.Context, c *Conn, method, path string, in any, each func(T) bool) error {
	resp, err := c.Open(ctx, method, path, in, http.Header{"Accept": {"application/x-ndjson"}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var v T
		if err := dec.Decode(&v); errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return unreachable(err)
		}
		if !each(v) {
			return nil
		}
	}
}

// FieldTLS is the Field of an error that says that a server is there, and that it or we
// have no certificate that the other one takes.
const FieldTLS = "tls"

func unreachable(err error) *placement.Error {
	if what, hint, ok := access.Explain(err); ok {
		e := placement.Errorf(placement.CodeUnavailable, "reach server: %s", what).WithHint("%s", hint)
		e.Field = FieldTLS
		return e
	}
	e := placement.Errorf(placement.CodeUnavailable, "reach server: %v", trimURL(err))
	return e.WithHint("is it running? systemctl status warmd-agent warmd-coordinator, or start `warmd dev`")
}

// trimURL drops the method and made-up URL that net/http puts before the cause.
func trimURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}
