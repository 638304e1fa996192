package trace

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
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

// receive serves OTLP over HTTP until ctx ends.
func (r *Recorder) receive(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+tracesPath, r.serveTraces)
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(r.opt.Log.Handler(), slog.LevelDebug),
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
func (r *Recorder) serveTraces(w http.ResponseWriter, q *http.Request) {
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
	spans, err := decode(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, j := range r.take(spans) {
		if r.opt.OnSpan != nil {
			r.opt.OnSpan(j.placement, j.phase)
		}
	}
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
		return nil, http.StatusUnsupportedMediaType, fmt.Errorf("content encoding %q: only gzip", text(enc))
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
