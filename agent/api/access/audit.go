package access

import (
	"context"
	"log"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"
)

// entry is one audited request: it becomes one line of the log.
type entry struct {
	log     *slog.Logger
	request *http.Request
	peer    Peer
	role    Role

	mu        sync.Mutex
	placement string
	written   bool
}

type entryKey struct{}

func withEntry(ctx context.Context, e *entry) context.Context {
	return context.WithValue(ctx, entryKey{}, e)
}

// Concerns names the placement that a request is about, for its audit line. A handler
// calls it before it answers; the id of a path is known without.
func Concerns(ctx context.Context, placement string) {
	if e, ok := ctx.Value(entryKey{}).(*entry); ok {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.placement = placement
	}
}

// watch serves the request and writes the line when the status is known: a start may
// stream for minutes, and whoever reads the log meanwhile should see it.
func (e *entry) watch(w http.ResponseWriter, next http.Handler) {
	status := http.StatusInternalServerError // of a panic, on its way to whoever answers for it
	defer func() { e.write(status, "") }()
	next.ServeHTTP(&watched{w, e}, e.request)
	if status = http.StatusOK; e.request.Context().Err() != nil {
		status = statusGone
	}
}

// statusGone says that the caller went away before there was an answer; it is nginx's.
const statusGone = 499

// write writes the line, once.
func (e *entry) write(status int, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.written {
		return
	}
	e.written = true
	if e.placement == "" {
		e.placement = e.request.PathValue("id")
	}
	attrs := []any{"audit", true, "who", e.peer.String(), "role", e.role.String(), "via", e.peer.Via, "method", e.request.Method,
		"path", clip(e.request.URL.Path), "status", status}
	if e.placement != "" {
		attrs = append(attrs, "placement", clip(e.placement))
	}
	if e.peer.PID > 0 {
		attrs = append(attrs, "peer_pid", e.peer.PID)
	} else {
		attrs = append(attrs, "from", e.request.RemoteAddr)
	}
	if why != "" {
		e.log.Warn("refused", append(attrs, "reason", why)...)
		return
	}
	e.log.Info("request", attrs...)
}

// clip bounds what a caller can make us write.
func clip(s string) string {
	if len(s) > 256 {
		return s[:256] + "..."
	}
	return s
}

// watched tells an entry its status.
type watched struct {
	http.ResponseWriter
	e *entry
}

// Unwrap lets http.ResponseController through, for deadlines and flushes.
func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *watched) WriteHeader(status int) {
	w.e.write(status, "")
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *watched) Write(b []byte) (int, error) {
	w.e.write(http.StatusOK, "")
	return w.ResponseWriter.Write(b)
}

// handshakeLog is the error log of an http.Server: a caller that the TLS handshake
// turned away never becomes a request, and is audited here. A connection that says
// nothing (a port scan, a load balancer's probe) is not worth more than debug.
func handshakeLog(to *slog.Logger) *log.Logger {
	return log.New(&handshakes{to: to}, "", 0)
}

type handshakes struct {
	to *slog.Logger

	mu     sync.Mutex
	window time.Time
	lines  int
}

// handshakeLines a minute are written: strangers must not fill the log.
const handshakeLines = 60

// Write takes one line of net/http.
func (h *handshakes) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	rest, isHandshake := strings.CutPrefix(line, "http: TLS handshake error from ")
	from, why, _ := strings.Cut(rest, ": ")
	if !isHandshake || why == "EOF" || strings.Contains(why, "connection reset by peer") || !h.allowed() {
		h.to.Debug(line)
		return len(b), nil
	}
	h.to.Warn("refused", "audit", true, "who", "unknown", "role", None.String(), "via", "tls", "from", from, "reason", clip(why))
	return len(b), nil
}

func (h *handshakes) allowed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.Sub(h.window) > time.Minute {
		h.window, h.lines = now, 0
	}
	h.lines++
	return h.lines <= handshakeLines
}
