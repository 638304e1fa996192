package otlp

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
)

const tracesPath = "/v1/traces"

// The bounds of the receiver: an engine's batch of 512 spans is some 300 KB.
const (
	maxBody   = 2 << 20 // bytes, as sent and as unpacked
	maxBodies = 4       // read at once
	maxConns  = 128
	slotWait  = time.Second
)

// Receiver is the endpoint that engines send spans to.
type Receiver struct {
	listener net.Listener
	take     func([]Span)
	slots    chan struct{} // one per body that is being read
	log      *slog.Logger
}

// Listen opens the endpoint, so that it is known; it starts nothing. The caller owes
// Run or Close. take sees each batch, several at once, and must not block. addr is a
// loopback address such as 127.0.0.1:0: whoever sends spans is not asked who it is.
func Listen(addr string, take func([]Span), log *slog.Logger) (*Receiver, error) {
	host, _, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("trace address %q: it must be a loopback address such as 127.0.0.1:0, spans are not authenticated", addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for spans: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Receiver{listener: l, take: take, slots: make(chan struct{}, maxBodies), log: log}, nil
}

// Addr is the address that is listened on.
func (r *Receiver) Addr() string { return r.listener.Addr().String() }

// Endpoint is where engines send spans: the whole URL, as vLLM wants it.
func (r *Receiver) Endpoint() string { return "http://" + r.Addr() + tracesPath }

// Close gives the address back when Run is never called.
func (r *Receiver) Close() error { return r.listener.Close() }

// Run receives until ctx ends.
func (r *Receiver) Run(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+tracesPath, r.serveTraces)
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(netutil.LimitListener(r.listener, maxConns)) }()
	select {
	case err := <-done:
		return fmt.Errorf("receive spans: %w", err)
	case <-ctx.Done():
	}
	// What an engine is sending right now may come in; nobody else is waited for.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(end) != nil {
		srv.Close()
	}
	_ = <-done
	return nil
}

// serveTraces takes one batch. The answer to a good one is an empty
// ExportTraceServiceResponse, which is no bytes at all.
func (r *Receiver) serveTraces(w http.ResponseWriter, q *http.Request) {
	wait := time.NewTimer(slotWait)
	defer wait.Stop()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-wait.C:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many batches at once", http.StatusServiceUnavailable) // every exporter repeats after 503, not after 429
		return
	}
	if t, _, err := mime.ParseMediaType(q.Header.Get("Content-Type")); err != nil || t != "application/x-protobuf" {
		http.Error(w, "only application/x-protobuf: set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf", http.StatusUnsupportedMediaType)
		return
	}
	body, status, err := readBody(w, q)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	spans, err := Decode(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.take(spans)
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.WriteHeader(http.StatusOK)
}

// readBody reads a body, unpacked, within maxBody; the status is that of the error.
func readBody(w http.ResponseWriter, q *http.Request) ([]byte, int, error) {
	var in io.Reader = http.MaxBytesReader(w, q.Body, maxBody)
	switch enc := q.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, http.StatusBadRequest, fmt.Errorf("unpack body: %w", err)
		}
		in = z
	default:
		return nil, http.StatusUnsupportedMediaType, fmt.Errorf("content encoding %q: only gzip", Printable(enc))
	}
	body, err := io.ReadAll(io.LimitReader(in, maxBody+1))
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong) || len(body) > maxBody:
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("body is longer than %d bytes: send smaller batches", maxBody)
	case err != nil:
		return nil, http.StatusBadRequest, fmt.Errorf("read body: %w", err)
	}
	return body, http.StatusOK, nil
}
