package trace

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"warmd/agent/api/otlp"
	"warmd/placement"
)

// serve runs a recorder with its listener until the test ends, or earlier.
func serve(t *testing.T, opt Options) (r *Recorder, stop func()) {
	t.Helper()
	r, err := New(opt)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			cancel()
			assert.NoError(t, <-done)
		}
		stopped = true
	}
	t.Cleanup(stop)
	return r, stop
}

// engine sends one span inside another, the way vLLM does with an environment.
func engine(t *testing.T, env map[string]string, outer, inner string) {
	t.Helper()
	exporter, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]))
	require.NoError(t, err)
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("vllm.process_kind", "engine_core"), attribute.Int("n", 1))))
	ctx := propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": env["TRACEPARENT"]})
	tracer := provider.Tracer("vllm.v1.engine.core")
	ctx, o := tracer.Start(ctx, outer)
	_, i := tracer.Start(ctx, inner)
	i.End()
	o.End()
	require.NoError(t, provider.Shutdown(t.Context()))
}

func TestEnginesSpansBecomePhasesAndProgress(t *testing.T) {
	seen := make(chan string, 10)
	r, _ := serve(t, Options{OnSpan: func(id string, p placement.Phase) { seen <- id + " " + p.Proc + " " + p.Name }})
	a := r.Begin(head("p1"), "", time.Now())
	assert.Equal(t, r.Endpoint(), a.Env()["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
	engine(t, a.Env(), "Executor init", "Load model")
	assert.ElementsMatch(t, []string{"p1 engine Executor init", "p1 engine Load model"}, []string{<-seen, <-seen})
	got := a.Trace()
	require.Equal(t, []string{"Executor init", "Load model"}, names(got))
	assert.Equal(t, got.Root, got.Phases[0].Parent)
	assert.Equal(t, got.Phases[0].SpanID, got.Phases[1].Parent)
}

func TestAnEngineOfAKilledAgentFindsTheNextOne(t *testing.T) {
	dir := t.TempDir()
	first, stop := serve(t, Options{Dir: dir})
	a := first.Begin(head("p1"), "", time.Now())
	a.Phase("attach", "agent", time.Now(), time.Millisecond)
	env := a.Env()
	stop()

	second, _ := serve(t, Options{Dir: dir})
	assert.Equal(t, first.Endpoint(), second.Endpoint(), "the engine knows one address for its whole life")
	b, ok := second.Resume("p1")
	require.True(t, ok)
	assert.Equal(t, env, b.Env())
	engine(t, env, "EngineCoreProc init", "Load model")
	b.Ready(time.Now().Add(time.Second))
	assert.Equal(t, []string{"attach", "EngineCoreProc init", "Load model"}, names(b.Trace()))
	assert.Empty(t, b.Trace().Failed)
	_, ok = second.Resume("p2")
	assert.False(t, ok)
}

func TestATakenPortIsGivenUp(t *testing.T) {
	dir := t.TempDir()
	first, _ := serve(t, Options{Dir: dir})
	second, err := New(Options{Dir: dir}) // the first one still listens there
	require.NoError(t, err)
	defer second.Close()
	assert.NotEqual(t, first.Endpoint(), second.Endpoint())
}

func TestWhatIsKnownSurvivesAKillWhileRecording(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := memory(t, Options{Dir: dir})
		stop := keep(r)
		defer stop()
		at := time.Now()
		a := r.Begin(head("p1"), "", at)
		for range 100 { // a phase every 10 ms
			time.Sleep(10 * time.Millisecond)
			a.Phase("x", "engine", time.Now(), time.Millisecond)
		}
		synctest.Wait()
		assert.LessOrEqual(t, r.history.writes.Load(), int64(5), "a second of phases is not a hundred writes")
		time.Sleep(saveDelay)
		synctest.Wait()

		next := memory(t, Options{Dir: dir}) // as after a kill: nobody told the first one
		got, ok := next.Get("p1")
		require.True(t, ok)
		assert.Len(t, got.Phases, 100)
		assert.Equal(t, interrupted, got.Failed, "it is not shown as going on")
		b, ok := next.Resume("p1")
		require.True(t, ok)
		assert.Equal(t, a.Traceparent(), b.Traceparent())
		next.take([]otlp.Span{sent(b, "Load model", 1, b.root, 0.5, 1)}, nil)
		b.Ready(at.Add(3 * time.Second))
		next.settle(time.Now(), true)
		assert.Len(t, next.List(), 1, "one trace, in one file")
		last, _ := memory(t, Options{Dir: dir}).Get("p1")
		assert.Equal(t, 3.0, last.Total)
		assert.Len(t, last.Phases, 101)
		_, ok = next.Resume("p1")
		assert.False(t, ok, "what has ended is not gone on with")
	})
}

func TestProcessesBornForAStartAreShownFromTheirBirth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := memory(t, Options{})
		at := time.Now()
		a := r.Begin(head("p1"), "", at)
		of := func(pid int, s otlp.Span) otlp.Span { s.PID = pid; return s }
		births := map[int]time.Time{7: at.Add(time.Second), 8: at.Add(-time.Hour), 9: at.Add(8 * time.Second)}
		r.take([]otlp.Span{of(7, sent(a, "Load model", 1, a.root, 6, 1))}, births)
		r.take([]otlp.Span{of(7, sent(a, "Worker init", 2, a.root, 5, 3)), of(8, sent(a, "parked", 3, a.root, 1, 1)), of(9, sent(a, "another's pid by now", 4, a.root, 2, 1))}, births)
		var got []placement.Phase
		for _, p := range a.Trace().Phases {
			if p.Name == processStart {
				got = append(got, p)
			}
		}
		require.Len(t, got, 1)
		assert.InDelta(t, 1, got[0].Start, 1e-6)
		assert.InDelta(t, 4, got[0].Duration, 1e-6, "to its first span, whichever comes first")
		assert.Equal(t, "engine", got[0].Proc)
	})
}

func TestBirthOfAProcessIsKnown(t *testing.T) {
	before := time.Now()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	born, err := otlp.Birth(cmd.Process.Pid)
	require.NoError(t, err)
	assert.WithinDuration(t, before, born, 500*time.Millisecond)
	self, err := otlp.Birth(os.Getpid())
	require.NoError(t, err)
	assert.True(t, self.Before(born))
	require.NoError(t, in.Close())
	require.NoError(t, cmd.Wait())
	_, err = otlp.Birth(cmd.Process.Pid)
	assert.Error(t, err)
}
