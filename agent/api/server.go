package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"warmd/placement"
)

// Limits of every warmd HTTP server. Go's defaults are no limits at all.
const (
	MaxBody        = 1 << 20 // bytes of a request body
	MaxHeader      = 16 << 10
	MaxDepth       = 32 // nesting of a JSON body: a bomb is refused before it is decoded
	readHeaderTime = 5 * time.Second
	readTime       = 10 * time.Second
	idleTime       = 60 * time.Second
	maxConns       = 4096
)

// NewServer makes an http.Server with warmd's limits. There is no write timeout:
// streams live as long as a start takes; each write has its own deadline.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: answerPanics(h, log), ReadHeaderTimeout: readHeaderTime, ReadTimeout: readTime, IdleTimeout: idleTime,
		MaxHeaderBytes: MaxHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// answerPanics turns a bug in a handler into a line in the log and an answer that
// says so: a connection that just breaks would look like a dead server.
func answerPanics(h http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p) // a handler's way to break the connection on purpose
			}
			log.Error("handler panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			WriteError(w, placement.Errorf(placement.CodeInternal, "%s %s: bug in warmd: %v", r.Method, r.URL.Path, p).WithHint("the log has the stack; please report it"))
		}()
		h.ServeHTTP(w, r)
	})
}

// inHand is what requests that came before the end get to be finished undisturbed;
// after it, those that wait or stream hear of the end.
const inHand = 300 * time.Millisecond

// Serve serves on every listener (with TLS on those of TCP, if srv has a TLSConfig)
// until ctx ends. Then it takes no more, closes idle
// connections, and waits at most grace for requests under way. It closes the
// listeners; a client that calls a socket of systemd's waits there for our successor.
func Serve(ctx context.Context, srv *http.Server, grace time.Duration, lns ...net.Listener) error {
	base, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	srv.BaseContext = func(net.Listener) context.Context { return base }
	errs := make(chan error, len(lns))
	secure := srv.TLSConfig // read once: the first Serve gives a server without one an empty one
	for _, ln := range lns {
		tcp := ln.Addr().Network() != "unix"
		ln = &limitListener{Listener: ln, slots: make(chan struct{}, maxConns)}
		if tcp && secure != nil {
			ln = tls.NewListener(ln, secure) // on the outside: net/http must see that it is TLS
		}
		go func() { errs <- srv.Serve(ln) }()
	}
	var first error
	left := len(lns)
	select {
	case <-ctx.Done():
	case first = <-errs:
		left--
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	defer time.AfterFunc(min(inHand, grace), end).Stop()
	if err := srv.Shutdown(stop); err != nil {
		_ = srv.Close()
	}
	for ; left > 0; left-- {
		_ = <-errs // the first error is the answer
	}
	if errors.Is(first, http.ErrServerClosed) {
		return nil
	}
	return first
}

// limitListener bounds open connections before anything is read from them.
type limitListener struct {
	net.Listener
	slots chan struct{}
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limitConn{Conn: c, free: func() { <-l.slots }}, nil
		default:
			_ = c.Close()
		}
	}
}

type limitConn struct {
	net.Conn
	once sync.Once
	free func()
}

// NetConn is the connection below, for those who ask the kernel who is behind it.
func (c *limitConn) NetConn() net.Conn { return c.Conn }

// Close frees the slot once, however often it is called.
func (c *limitConn) Close() error {
	c.once.Do(c.free)
	return c.Conn.Close()
}

// ReadJSON decodes a request body strictly: bounded size and depth, no unknown
// field, nothing behind the value. The error is a *placement.Error.
func ReadJSON(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return placement.Errorf(placement.CodeBadRequest, "body is larger than %d bytes", MaxBody)
		}
		return placement.Errorf(placement.CodeBadRequest, "read body: %v", err)
	}
	if d := jsonDepth(body); d > MaxDepth {
		return placement.Errorf(placement.CodeBadRequest, "body nests deeper than %d", MaxDepth)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		e := placement.Errorf(placement.CodeBadRequest, "decode body: %v", err)
		if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			e.Field = t.Field
		}
		return e
	}
	if dec.More() {
		return placement.Errorf(placement.CodeBadRequest, "decode body: more than one JSON value")
	}
	return nil
}

// jsonDepth is the deepest nesting of a body, strings skipped.
func jsonDepth(b []byte) (deepest int) {
	depth, inString := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

// WriteJSON answers with v.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// WriteError answers with a refusal and the status of its code.
func WriteError(w http.ResponseWriter, err error) {
	e := placement.AsError(err)
	WriteJSON(w, e.Code.Status(), e)
}

// Patient lifts the server's read deadline, for a handler that waits: the deadline
// bounds how long a request may take to arrive, not how long its answer may.
func Patient(w http.ResponseWriter) { _ = http.NewResponseController(w).SetReadDeadline(time.Time{}) }

// Lines writes an NDJSON answer. A client that does not read for writeTime
// seconds is dropped: it must not hold a placement's goroutine for ever.
type Lines struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	enc *json.Encoder
}

const writeTime = 10 * time.Second

// NewLines starts an NDJSON answer.
func NewLines(w http.ResponseWriter, status int) *Lines {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("X-Accel-Buffering", "no")
	rc := http.NewResponseController(w)
	Patient(w)
	w.WriteHeader(status)
	return &Lines{w: w, rc: rc, enc: json.NewEncoder(w)}
}

// Write sends one line and flushes it.
func (l *Lines) Write(v any) error {
	_ = l.rc.SetWriteDeadline(time.Now().Add(writeTime))
	if err := l.enc.Encode(v); err != nil {
		return fmt.Errorf("write line: %w", err)
	}
	return l.rc.Flush()
}
