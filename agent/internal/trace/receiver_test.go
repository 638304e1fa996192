package trace

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	res "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"warmd/placement"
)

// serve runs a recorder with its listener until the test ends.
func serve(t *testing.T, opt Options) *Recorder {
	t.Helper()
	r, err := New(opt)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
		http.DefaultClient.CloseIdleConnections()
	})
	return r
}

func attr(key, val string) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: val}}}
}

// request is a batch as vLLM's engine process sends it.
func request(kind string, spans ...*tracepb.Span) *collector.ExportTraceServiceRequest {
	r := &res.Resource{Attributes: []*common.KeyValue{attr("service.name", "vllm"), attr("vllm.process_id", "42")}}
	if kind != "" {
		r.Attributes = append(r.Attributes, attr("vllm.process_kind", kind))
	}
	return &collector.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: r, ScopeSpans: []*tracepb.ScopeSpans{{Scope: &common.InstrumentationScope{Name: "vllm.v1.engine.core"}, Spans: spans}},
	}}}
}

func spanPB(a *Active, name string, id byte) *tracepb.Span {
	return &tracepb.Span{
		TraceId: a.trace[:], SpanId: []byte{0, 0, 0, 0, 0, 0, 0, id}, ParentSpanId: a.root[:], Name: name,
		StartTimeUnixNano: uint64(a.begin.UnixNano()), EndTimeUnixNano: uint64(a.begin.Add(time.Second).UnixNano()),
		Attributes: []*common.KeyValue{attr("code.function", "f")},
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	require.NoError(t, err)
	return b
}

func pack(t *testing.T, b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(b)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return out.Bytes()
}

func post(t *testing.T, r *Recorder, body []byte, header ...string) (int, string) {
	t.Helper()
	q, err := http.NewRequest(http.MethodPost, r.Endpoint(), bytes.NewReader(body))
	require.NoError(t, err)
	q.Header.Set("Content-Type", "application/x-protobuf")
	for i := 0; i < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	w, err := http.DefaultClient.Do(q)
	require.NoError(t, err)
	defer w.Body.Close()
	text, err := io.ReadAll(w.Body)
	require.NoError(t, err)
	return w.StatusCode, string(text)
}

func TestEnginesSpansBecomePhases(t *testing.T) {
	seen := make(chan string, 10)
	r := serve(t, Options{OnSpan: func(id string, p placement.Phase) { seen <- id + " " + p.Proc + " " + p.Name }})
	a := r.Begin(head("p1"), "", time.Now())
	for i, c := range []struct{ kind, name, proc string }{
		{"engine_core", "EngineCoreProc init", "engine"}, {"worker", "Load model", "worker"}, {"", "anything", "engine"},
	} {
		body := marshal(t, request(c.kind, spanPB(a, c.name, byte(i+1))))
		header := []string{}
		if i == 1 {
			body, header = pack(t, body), []string{"Content-Encoding", "gzip"}
		}
		code, text := post(t, r, body, header...)
		require.Equal(t, 200, code, text)
		require.NoError(t, proto.Unmarshal([]byte(text), &collector.ExportTraceServiceResponse{}))
		assert.Equal(t, "p1 "+c.proc+" "+c.name, <-seen)
	}
	assert.Len(t, a.Trace().Phases, 3)
}

func TestProcIsReadFromWhatVLLMSays(t *testing.T) {
	for _, c := range []struct{ kind, module, scope, want string }{
		{"engine_core", "vllm.engine_core", "vllm.v1.engine.core", "engine"},
		{"worker", "vllm.worker", "vllm.v1.worker.gpu_worker", "worker"},
		{"", "vllm.llm_engine", "vllm.v1.engine.core_client", "api"},
		{"", "", "vllm.entrypoints.launchers.launcher", "api"},
		{"api_server", "", "", "api"},
		{"Other\n", "", "", "other"},
		{"", "", "", "engine"},
	} {
		assert.Equal(t, c.want, procOf(c.kind, c.module, c.scope), "%+v", c)
	}
}

func TestRealExporterIsUnderstood(t *testing.T) {
	r := serve(t, Options{})
	a := r.Begin(head("p1"), "", time.Now())
	env := a.Env()
	assert.Equal(t, r.Endpoint(), env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
	assert.Equal(t, "http/protobuf", env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])

	exporter, err := otlptrace.New(t.Context(), httpClient{env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]})
	require.NoError(t, err)
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("vllm.process_kind", "engine_core"), attribute.Int("n", 1))))
	ctx := propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": env["TRACEPARENT"]})
	tracer := provider.Tracer("vllm.v1.engine.core")
	ctx, outer := tracer.Start(ctx, "Executor init")
	_, inner := tracer.Start(ctx, "Load model")
	inner.AddEvent("e")
	inner.End()
	outer.End()
	require.NoError(t, provider.Shutdown(t.Context()))

	got := a.Trace()
	require.Equal(t, []string{"Executor init", "Load model"}, names(got))
	assert.Equal(t, outer.SpanContext().SpanID().String(), got.Phases[0].SpanID)
	assert.Equal(t, fmt.Sprintf("%x", a.root), got.Phases[0].Parent)
	assert.Equal(t, got.Phases[0].SpanID, got.Phases[1].Parent)
	assert.Equal(t, outer.SpanContext().TraceID().String(), got.TraceID)
	assert.Equal(t, "engine", got.Phases[0].Proc)
}

// httpClient is OTLP over HTTP for the exporter of the Go SDK.
type httpClient struct{ url string }

func (httpClient) Start(context.Context) error { return nil }
func (httpClient) Stop(context.Context) error  { return nil }
func (c httpClient) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	body, err := proto.Marshal(&collector.ExportTraceServiceRequest{ResourceSpans: spans})
	if err != nil {
		return err
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/x-protobuf")
	w, err := http.DefaultClient.Do(q)
	if err != nil {
		return err
	}
	defer w.Body.Close()
	if w.StatusCode != http.StatusOK {
		return fmt.Errorf("upload: %s", w.Status)
	}
	return nil
}

func TestBadBodiesAreRefusedWithAReason(t *testing.T) {
	r := serve(t, Options{})
	a := r.Begin(head("p1"), "", time.Now())
	good := marshal(t, request("worker", spanPB(a, "x", 1)))
	many := request("worker")
	for range maxSpans + 1 {
		s := many.ResourceSpans[0].ScopeSpans[0]
		s.Spans = append(s.Spans, spanPB(a, "x", 1))
	}
	for name, c := range map[string]struct {
		body   []byte
		header []string
		code   int
		text   string
	}{
		"json":           {[]byte("{}"), []string{"Content-Type", "application/json"}, 415, "http/protobuf"},
		"no type":        {good, []string{"Content-Type", ""}, 415, "application/x-protobuf"},
		"zstd":           {good, []string{"Content-Encoding", "zstd"}, 415, `"zstd": only gzip`},
		"not gzip":       {good, []string{"Content-Encoding", "gzip"}, 400, "unpack body"},
		"torn gzip":      {pack(t, good)[:20], []string{"Content-Encoding", "gzip"}, 400, "read body"},
		"not protobuf":   {[]byte("\xff\xff\xff"), nil, 400, "not an OTLP trace request"},
		"torn protobuf":  {good[:len(good)-1], nil, 400, "not an OTLP trace request"},
		"oversize":       {make([]byte, maxBody+1), nil, 413, "smaller batches"},
		"gzip bomb":      {pack(t, make([]byte, 10*maxBody)), []string{"Content-Encoding", "gzip"}, 413, "smaller batches"},
		"too many spans": {marshal(t, many)[:], []string{}, 400, "more than 8192 spans"},
	} {
		code, text := post(t, r, c.body, c.header...)
		assert.Equal(t, c.code, code, "%s: %s", name, text)
		assert.Contains(t, text, c.text, name)
	}
	assert.Empty(t, a.Trace().Phases)
	for _, x := range []struct{ method, url string }{{"GET", r.Endpoint()}, {"POST", strings.TrimSuffix(r.Endpoint(), "traces") + "metrics"}} {
		q, _ := http.NewRequest(x.method, x.url, nil)
		w, err := http.DefaultClient.Do(q)
		require.NoError(t, err)
		w.Body.Close()
		assert.Contains(t, []int{404, 405}, w.StatusCode)
	}
	code, _ := post(t, r, good)
	assert.Equal(t, 200, code, "and then a good one is still taken")
	assert.Len(t, a.Trace().Phases, 1)
}

func TestEmptySpansCostNoMemory(t *testing.T) {
	// Half a million spans of nothing: one megabyte here, over a hundred as structs.
	inner := bytes.Repeat([]byte{0x12, 0x00}, 500_000)
	scope := append([]byte{0x12, byte(len(inner)&0x7f | 0x80), byte(len(inner)>>7&0x7f | 0x80), byte(len(inner) >> 14)}, inner...)
	body := append([]byte{0x0a, byte(len(scope)&0x7f | 0x80), byte(len(scope)>>7&0x7f | 0x80), byte(len(scope) >> 14)}, scope...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	spans, err := decode(body)
	runtime.ReadMemStats(&after)
	require.NoError(t, err)
	assert.Empty(t, spans)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20), "of a body of %d bytes", len(body))
}

func TestSlowClientsAreCutOffAndOthersServed(t *testing.T) {
	r := serve(t, Options{})
	a := r.Begin(head("p1"), "", time.Now())
	for range maxBodies { // each holds a slot and sends nothing more
		c, err := net.Dial("tcp", r.listener.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\n", tracesPath)
	}
	require.Eventually(t, func() bool { return len(r.slots) == maxBodies }, 5*time.Second, time.Millisecond)
	code, _ := post(t, r, marshal(t, request("", spanPB(a, "x", 1))))
	assert.Equal(t, 503, code, "exporters repeat after 503")
	assert.LessOrEqual(t, len(r.slots), maxBodies)
}

// FuzzDecode compares decode with the generated types: whatever they accept, we
// read the same spans from; whatever we refuse, they refuse, or it is too much.
func FuzzDecode(f *testing.F) {
	r, err := newRecorder(Options{})
	if err != nil {
		f.Fatal(err)
	}
	a := r.Begin(head("p"), "", time.Unix(1, 0))
	for _, m := range []*collector.ExportTraceServiceRequest{{}, request("engine_core", spanPB(a, "Load model", 1), spanPB(a, "", 2)), request("")} {
		b, _ := proto.Marshal(m)
		f.Add(b)
		f.Add(append(b, b...))
	}
	f.Add([]byte{0x0a, 0x02, 0x0a, 0x00})
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := decode(body)
		var m collector.ExportTraceServiceRequest
		if e := proto.Unmarshal(body, &m); e != nil {
			return // it also refuses what we do not read: bad UTF-8, broken attributes
		}
		if err != nil {
			t.Fatalf("decode refuses what the generated types accept: %v", err)
		}
		var want []span
		for _, rs := range m.GetResourceSpans() {
			kind, module := "", ""
			for _, kv := range rs.GetResource().GetAttributes() {
				switch kv.GetKey() {
				case "vllm.process_kind":
					kind = kv.GetValue().GetStringValue()
				case "vllm.instrumenting_module_name":
					module = kv.GetValue().GetStringValue()
				}
			}
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					w := span{name: s.GetName()[:min(len(s.GetName()), 4096)], proc: procOf(kind, module, ss.GetScope().GetName()), start: s.GetStartTimeUnixNano(), end: s.GetEndTimeUnixNano()}
					if len(s.GetTraceId()) != 16 || len(s.GetSpanId()) != 8 || (len(s.GetParentSpanId()) != 0 && len(s.GetParentSpanId()) != 8) {
						continue
					}
					copy(w.trace[:], s.GetTraceId())
					copy(w.id[:], s.GetSpanId())
					copy(w.parent[:], s.GetParentSpanId())
					if w.trace != (traceID{}) && w.id != (spanID{}) {
						want = append(want, w)
					}
				}
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("read %v\nwant %v", got, want)
		}
		for i := range got {
			got[i].trace = a.trace
		}
		r.take(got)
		r.Get("p")
	})
}
