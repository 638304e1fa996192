package trace

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"warmd/placement"
)

// The bounds of the export. A collector that is away costs the traces of its
// absence, beyond those that wait; it never costs a start anything.
const (
	maxQueued   = 256              // traces that wait for the collector
	maxBatch    = 16               // traces in one request
	exportTime  = 10 * time.Second // one try
	exportRetry = time.Minute      // all tries of one batch
	flushTime   = 2 * time.Second  // at the agent's end
)

// exporter sends finished traces to a collector. The nil exporter sends nothing.
// Headers, certificates and compression are the library's, from the OTEL_EXPORTER_OTLP
// variables of the agent's environment.
type exporter struct {
	client otlptrace.Client
	queue  chan placement.Trace
	lost   atomic.Int64 // traces that found no place or that the collector did not take
	log    *slog.Logger
	down   bool // the last batch was lost, and somebody was told; the sender's
}

// CheckCollector reports what is wrong with the URL of a collector.
func CheckCollector(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("%q must be http://host:port or https://host:port, with the path if it is not %s", raw, "/v1/traces")
	}
	return nil
}

func newExporter(raw string, log *slog.Logger) (*exporter, error) {
	if err := CheckCollector(raw); err != nil {
		return nil, fmt.Errorf("trace collector %w", err)
	}
	u, _ := url.Parse(raw)
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	client := otlptracehttp.NewClient(otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithTimeout(exportTime),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: exportTime, MaxElapsedTime: exportRetry}))
	return &exporter{client: client, queue: make(chan placement.Trace, maxQueued), log: log}, nil
}

// offer hands a trace over. It never waits.
func (e *exporter) offer(t placement.Trace) {
	if e == nil || t.Unsampled {
		return
	}
	select {
	case e.queue <- t:
	default:
		e.lost.Add(1)
	}
}

// start sends until the returned function is called, which sends what waits and
// returns.
func (e *exporter) start() (stop func()) {
	if e == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); e.run(ctx) }()
	return func() {
		close(e.queue) // nobody offers any more: the keeper has ended
		flush := time.AfterFunc(flushTime, cancel)
		<-done
		flush.Stop()
		cancel()
	}
}

func (e *exporter) run(ctx context.Context) {
	if err := e.client.Start(ctx); err != nil {
		e.log.Warn("traces are not sent to the collector", "err", err)
	}
	defer func() { _ = e.client.Stop(ctx) }()
	for t := range e.queue {
		batch := []placement.Trace{t}
		for len(batch) < maxBatch && len(e.queue) > 0 {
			batch = append(batch, <-e.queue) // we are the only reader
		}
		e.send(ctx, batch)
	}
}

// send tells once that the collector is away, and once that it is back.
func (e *exporter) send(ctx context.Context, batch []placement.Trace) {
	var all []*tracepb.ResourceSpans
	for _, t := range batch {
		all = append(all, spansOf(t))
	}
	err := e.client.UploadTraces(ctx, all)
	switch {
	case err != nil:
		e.lost.Add(int64(len(batch)))
		if !e.down {
			e.log.Warn("traces are lost to the collector; they are kept here", "err", err)
		}
	case e.down:
		e.log.Info("the collector takes traces again", "lost", e.lost.Load())
	}
	e.down = err != nil
}
