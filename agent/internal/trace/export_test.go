package trace

import (
	"bytes"
	"compress/gzip"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"warmd/placement"
)

// collect is a collector in this process: it hands over each request.
func collect(t *testing.T) (url string, got chan *collector.ExportTraceServiceRequest) {
	got = make(chan *collector.ExportTraceServiceRequest, 16)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		var in io.Reader = q.Body
		if q.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(q.Body)
			if !assert.NoError(t, err) {
				return
			}
			in = z
		}
		body, err := io.ReadAll(in)
		assert.NoError(t, err)
		assert.Equal(t, "/v1/traces", q.URL.Path)
		m := &collector.ExportTraceServiceRequest{}
		assert.NoError(t, proto.Unmarshal(body, m))
		got <- m
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(srv.Close)
	return srv.URL, got
}

func TestCollectorGetsTheStartAsAChildOfTheCallersSpan(t *testing.T) {
	url, got := collect(t)
	r, stop := serve(t, Options{Collector: url})
	at := time.Now()
	a := r.Begin(head("p1"), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", at)
	a.Phase("attach", "agent", at.Add(time.Millisecond), time.Millisecond)
	r.take(sentTwo(a), nil)
	a.Ready(at.Add(2 * time.Second))
	b := r.Begin(head("p2"), "", at)
	b.Fail("the engine died")
	c := r.Begin(head("p3"), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", at)
	c.Ready(at.Add(time.Second))
	stop() // finishes them, and flushes

	var all []*tracepb.ResourceSpans
	for len(got) > 0 {
		all = append(all, (<-got).GetResourceSpans()...)
	}
	require.Len(t, all, 2, "a caller who does not sample is not sampled")
	spans := map[string]*tracepb.Span{}
	for _, s := range all[0].GetScopeSpans()[0].GetSpans() {
		spans[s.GetName()] = s
	}
	root := spans["start opt"]
	require.NotNil(t, root)
	assert.Equal(t, unhexed("0af7651916cd43dd8448eb211c80319c"), root.GetTraceId())
	assert.Equal(t, unhexed("b7ad6b7169203331"), root.GetParentSpanId())
	assert.Equal(t, uint64(2*time.Second), root.GetEndTimeUnixNano()-root.GetStartTimeUnixNano())
	assert.Equal(t, uint64(at.UnixNano()), root.GetStartTimeUnixNano())
	assert.Equal(t, root.GetSpanId(), spans["attach"].GetParentSpanId())
	assert.Equal(t, spans["Executor init"].GetSpanId(), spans["Load model"].GetParentSpanId())
	assert.Contains(t, all[0].GetResource().String(), "n1")

	failed := all[1].GetScopeSpans()[0].GetSpans()[0]
	assert.Equal(t, "the engine died", failed.GetStatus().GetMessage())
	assert.Empty(t, failed.GetParentSpanId())
}

func TestCollectorThatIsAwayCostsNothing(t *testing.T) {
	hang := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer srv.Close()
	defer close(hang)
	var log bytes.Buffer
	e, err := newExporter(srv.URL, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	stop := e.start()
	began := time.Now()
	for range 2*maxQueued + maxBatch + 1 {
		e.offer(placement.Trace{Placement: "p", Model: "m", Begin: began})
	}
	assert.Less(t, time.Since(began), 4*time.Second, "nobody waits for it")
	assert.GreaterOrEqual(t, e.lost.Load(), int64(maxQueued-maxBatch))
	stop()
	assert.Less(t, time.Since(began), 5*flushTime, "nor does the agent's end")
	assert.Equal(t, 1, strings.Count(log.String(), "are lost to the collector"), "it is told once")

	var none *exporter
	none.offer(placement.Trace{})
	none.start()()
}
