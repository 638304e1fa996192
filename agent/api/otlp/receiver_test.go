package otlp

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
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	res "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a receiver until the test ends; batches come out of the channel.
func serve(t *testing.T) (*Receiver, chan []Span) {
	t.Helper()
	got := make(chan []Span, 16)
	r, err := Listen("127.0.0.1:0", func(s []Span) { got <- s }, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
		http.DefaultClient.CloseIdleConnections()
	})
	return r, got
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

var (
	aTrace = TraceID{1, 2, 3}
	aRoot  = SpanID{9}
)

func spanPB(name string, id byte) *tracepb.Span {
	return &tracepb.Span{
		TraceId: aTrace[:], SpanId: []byte{0, 0, 0, 0, 0, 0, 0, id}, ParentSpanId: aRoot[:], Name: name,
		StartTimeUnixNano: 1_000_000_000, EndTimeUnixNano: 2_000_000_000,
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

func post(t *testing.T, r *Receiver, body []byte, header ...string) (int, string) {
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

func TestEnginesBatchesAreRead(t *testing.T) {
	r, got := serve(t)
	for i, c := range []struct{ kind, name, proc string }{
		{"engine_core", "EngineCoreProc init", "engine"}, {"worker", "Load model", "worker"}, {"", "anything", "engine"},
	} {
		body := marshal(t, request(c.kind, spanPB(c.name, byte(i+1))))
		header := []string{}
		if i == 1 {
			body, header = pack(t, body), []string{"Content-Encoding", "gzip"}
		}
		code, text := post(t, r, body, header...)
		require.Equal(t, 200, code, text)
		require.NoError(t, proto.Unmarshal([]byte(text), &collector.ExportTraceServiceResponse{}))
		assert.Equal(t, []Span{{
			Trace: aTrace, ID: SpanID{7: byte(i + 1)}, Parent: aRoot, Name: c.name, Proc: c.proc, PID: 42, Start: 1_000_000_000, End: 2_000_000_000,
		}}, <-got)
	}
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

func TestBadBodiesAreRefusedWithAReason(t *testing.T) {
	r, got := serve(t)
	good := marshal(t, request("worker", spanPB("x", 1)))
	many := request("worker")
	for range maxSpans + 1 {
		s := many.ResourceSpans[0].ScopeSpans[0]
		s.Spans = append(s.Spans, spanPB("x", 1))
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
	assert.Empty(t, got)
	for _, x := range []struct{ method, url string }{{"GET", r.Endpoint()}, {"POST", strings.TrimSuffix(r.Endpoint(), "traces") + "metrics"}} {
		q, _ := http.NewRequest(x.method, x.url, nil)
		w, err := http.DefaultClient.Do(q)
		require.NoError(t, err)
		w.Body.Close()
		assert.Contains(t, []int{404, 405}, w.StatusCode)
	}
	code, _ := post(t, r, good)
	assert.Equal(t, 200, code, "and then a good one is still taken")
	assert.Len(t, <-got, 1)
}

func TestEmptySpansCostNoMemory(t *testing.T) {
	// Half a million spans of nothing: one megabyte here, over a hundred as structs.
	inner := bytes.Repeat([]byte{0x12, 0x00}, 500_000)
	scope := append([]byte{0x12, byte(len(inner)&0x7f | 0x80), byte(len(inner)>>7&0x7f | 0x80), byte(len(inner) >> 14)}, inner...)
	body := append([]byte{0x0a, byte(len(scope)&0x7f | 0x80), byte(len(scope)>>7&0x7f | 0x80), byte(len(scope) >> 14)}, scope...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	spans, err := Decode(body)
	runtime.ReadMemStats(&after)
	require.NoError(t, err)
	assert.Empty(t, spans)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20), "of a body of %d bytes", len(body))
}

func TestSlowClientsAreCutOffAndOthersServed(t *testing.T) {
	r, _ := serve(t)
	for range maxBodies { // each holds a slot and sends nothing more
		c, err := net.Dial("tcp", r.Addr())
		require.NoError(t, err)
		defer c.Close()
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\n", tracesPath)
	}
	require.Eventually(t, func() bool { return len(r.slots) == maxBodies }, 5*time.Second, time.Millisecond)
	code, _ := post(t, r, marshal(t, request("", spanPB("x", 1))))
	assert.Equal(t, 503, code, "exporters repeat after 503")
	assert.LessOrEqual(t, len(r.slots), maxBodies)
}

// FuzzDecode compares decode with the generated types: whatever they accept, we
// read the same spans from; whatever we refuse, they refuse, or it is too much.
func FuzzDecode(f *testing.F) {
	for _, m := range []*collector.ExportTraceServiceRequest{{}, request("engine_core", spanPB("Load model", 1), spanPB("", 2)), request("")} {
		b, _ := proto.Marshal(m)
		f.Add(b)
		f.Add(append(b, b...))
	}
	f.Add([]byte{0x0a, 0x02, 0x0a, 0x00})
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := Decode(body)
		var m collector.ExportTraceServiceRequest
		if e := proto.Unmarshal(body, &m); e != nil {
			return // it also refuses what we do not read: bad UTF-8, broken attributes
		}
		if err != nil {
			t.Fatalf("decode refuses what the generated types accept: %v", err)
		}
		var want []Span
		for _, rs := range m.GetResourceSpans() {
			kind, module, pid := "", "", 0
			for _, kv := range rs.GetResource().GetAttributes() {
				switch kv.GetKey() {
				case "vllm.process_kind":
					kind = kv.GetValue().GetStringValue()
				case "vllm.instrumenting_module_name":
					module = kv.GetValue().GetStringValue()
				case "vllm.process_id":
					pid = processID(kv.GetValue().GetStringValue())
				}
			}
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					w := Span{Name: s.GetName()[:min(len(s.GetName()), 4096)], PID: pid, Proc: procOf(kind, module, ss.GetScope().GetName()), Start: s.GetStartTimeUnixNano(), End: s.GetEndTimeUnixNano()}
					if len(s.GetTraceId()) != 16 || len(s.GetSpanId()) != 8 || (len(s.GetParentSpanId()) != 0 && len(s.GetParentSpanId()) != 8) {
						continue
					}
					copy(w.Trace[:], s.GetTraceId())
					copy(w.ID[:], s.GetSpanId())
					copy(w.Parent[:], s.GetParentSpanId())
					if w.Trace != (TraceID{}) && w.ID != (SpanID{}) {
						want = append(want, w)
					}
				}
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("read %v\nwant %v", got, want)
		}
	})
}

func TestTraceparentIsReadAndWrittenInW3CsForm(t *testing.T) {
	const id = "0af7651916cd43dd8448eb211c80319c"
	c, ok := ParseTraceparent("00-" + id + "-b7ad6b7169203331-01")
	require.True(t, ok)
	assert.Equal(t, "b7ad6b7169203331", c.Span.String())
	assert.True(t, c.Sampled)
	assert.Equal(t, "00-"+id+"-b7ad6b7169203331-01", c.Traceparent())
	c, ok = ParseTraceparent("42-" + id + "-b7ad6b7169203331-00-from-the-future")
	assert.True(t, ok, "a later version is read as far as we know it")
	assert.Equal(t, "00-"+id+"-b7ad6b7169203331-00", c.Traceparent())
	for _, bad := range []string{"", "x", "00-" + id, "00-" + id + "-0000000000000000-01", "00-" + id + "-b7ad6b7169203331-0x"} {
		_, ok := ParseTraceparent(bad)
		assert.False(t, ok, "%q", bad)
	}
	assert.NotEqual(t, NewTraceID(), NewTraceID())
	assert.NotEqual(t, NewSpanID(), NewSpanID())
}

func TestNamesAreFitForATerminal(t *testing.T) {
	assert.Equal(t, "Warmup (GPU)[31m", Printable("Warmup (GPU)\x1b[31m\r\n\u202e\xff"))
	assert.Equal(t, strings.Repeat("é", 64), Printable(strings.Repeat("é", 100)))
	assert.Equal(t, "a"+strings.Repeat("é", 63), Printable("a"+strings.Repeat("é", 100)), "no character is cut in two")
}

func TestOnlyLoopbackIsListenedOn(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", "127.0.0.1", ":4318", "example.com:1", "[::]:0"} {
		_, err := Listen(addr, nil, nil)
		assert.ErrorContains(t, err, "loopback", "%s", addr)
	}
	r, err := Listen("127.0.0.1:0", nil, nil)
	require.NoError(t, err)
	_, err = Listen(r.Addr(), nil, nil)
	assert.ErrorContains(t, err, "listen for spans")
	require.NoError(t, r.Close())
}
