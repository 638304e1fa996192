package bench

import (
	"bytes"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	res "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"warmd/agent/api/otlp"
)

// fakeEngine is `vllm serve` as far as the bench sees it: it logs its configuration,
// sends its start-up spans and serves.
func fakeEngine(args []string) int {
	f := flag.NewFlagSet("vllm", flag.ContinueOnError)
	port, host, name := f.Int("port", 0, ""), f.String("host", "", ""), f.String("served-model-name", "", "")
	eager := f.Bool("enforce-eager", false, "")
	if len(args) < 2 || args[0] != "serve" || f.Parse(args[2:]) != nil {
		return 2
	}
	fmt.Printf("(EngineCore pid=1) INFO core.py] %s(v0.32.0) with config: model='%s', enforce_eager=%v, kv=%s\n", engineSays, args[1], *eager, os.Getenv("VLLM_CPU_KVCACHE_SPACE"))
	if os.WriteFile(filepath.Join(os.Getenv("TMPDIR"), "socket"), nil, 0o600) != nil {
		return 7
	}
	parent, ok := otlp.ParseTraceparent(os.Getenv("TRACEPARENT"))
	if !ok {
		return 3
	}
	begin := time.Now()
	var spans []*tracepb.Span
	span := func(name string, from, to time.Duration) {
		id := otlp.NewSpanID()
		spans = append(spans, &tracepb.Span{
			TraceId: parent.Trace[:], SpanId: id[:], ParentSpanId: parent.Span[:], Name: name,
			StartTimeUnixNano: uint64(begin.Add(from).UnixNano()), EndTimeUnixNano: uint64(begin.Add(to).UnixNano()),
		})
	}
	const ms = time.Millisecond
	span("EngineCoreProc init", 0, 60*ms)
	span("Executor init", 10*ms, 50*ms)
	span("Load model", 20*ms, 40*ms)
	attr := func(k, v string) *common.KeyValue {
		return &common.KeyValue{Key: k, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: v}}}
	}
	body, err := proto.Marshal(&collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &res.Resource{Attributes: []*common.KeyValue{attr("vllm.process_kind", "engine_core"), attr("vllm.process_id", strconv.Itoa(os.Getpid()))}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}})
	if err != nil {
		return 4
	}
	time.Sleep(time.Until(begin.Add(60 * ms)))
	r, err := http.Post(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), "application/x-protobuf", bytes.NewReader(body))
	if err != nil || r.StatusCode != 200 {
		return 5
	}
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", *host, *port))
	if err != nil {
		return 6
	}
	_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { serveEngine(w, q, "I am "+*name) }))
	return 0
}

// fakeRuntime is a venv whose vllm is this test binary.
func fakeRuntime(t *testing.T) Runtime {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "venv", "bin")
	require.NoError(t, os.MkdirAll(bin, 0o755))
	self, err := os.Executable()
	require.NoError(t, err)
	require.NoError(t, os.Symlink(self, filepath.Join(bin, "vllm")))
	return Runtime{Name: "rt", Python: filepath.Join(bin, "python"), Env: map[string]string{"WARMD_FAKE_ENGINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}}
}

func TestAPlainStartThatDiesIsReportedWithItsLastWord(t *testing.T) {
	e := Engine{Runtime: fakeRuntime(t), Model: "/models/opt", Name: "opt", Args: []string{"--no-such-flag"}}
	t.Setenv("TMPDIR", t.TempDir())
	arm, end, err := Plain(t.Context(), e)
	require.NoError(t, err)
	_, err = Run(t.Context(), []Arm{arm}, plan(1))
	require.ErrorContains(t, err, "start vllm serve: exit status 2")
	said := regexp.MustCompile(`its log (\S+) ends`).FindStringSubmatch(err.Error())
	require.Len(t, said, 2)
	end()
	require.FileExists(t, said[1], "the log of what failed stays")
}

func TestPlainArmIsMeasuredByTheEnginesOwnSpans(t *testing.T) {
	e := Engine{Runtime: fakeRuntime(t), Model: "/models/opt", Name: "opt", Args: []string{"--enforce-eager"}, Env: map[string]string{"VLLM_CPU_KVCACHE_SPACE": "2"}}
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	arm, end, err := Plain(t.Context(), e)
	require.NoError(t, err)
	all, err := Run(t.Context(), []Arm{arm}, plan(1))
	end()
	require.NoError(t, err)
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	assert.Empty(t, left, "a log that nobody needs, and what the engines left in their folders, go")
	s := all[1]
	assert.Equal(t, "I am opt", s.Text)
	assert.Contains(t, s.config, "enforce_eager=true, kv=2", "flags and environment of the request, over the runtime's")
	assert.Empty(t, s.Stages.Missing)
	assert.InDelta(t, 0, s.Stages.Unaccounted, 1e-6)
	assert.InDelta(t, 0.020, s.Stages.Seconds[Loading], 0.001)
	assert.InDelta(t, 0.010, s.Stages.Seconds[Startup], 0.001)
	assert.Greater(t, s.Stages.Seconds[Executor], 0.030, "from the birth of the process")
	assert.Greater(t, s.Answers, 0.060)
}
