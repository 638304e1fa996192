package trace

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"warmd/agent/api/otlp"
	"warmd/placement"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a recorder without a listener, for fake time.
func memory(t *testing.T, opt Options) *Recorder {
	r, err := newRecorder(opt)
	require.NoError(t, err)
	return r
}

// keep runs the keeper until the test calls the returned function.
func keep(r *Recorder) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.keepHistory(ctx) }()
	return func() { cancel(); <-done }
}

func head(id string) placement.Trace {
	return placement.Trace{Placement: id, Node: "n1", Device: "cpu-0", Runtime: "vllm", Model: "opt", Tier: placement.TierWarm}
}

// sent makes a span as an engine would send it, from seconds after a's begin.
func sent(a *Active, name string, id byte, parent otlp.SpanID, start, dur float64) otlp.Span {
	at := a.begin.Add(time.Duration(start * float64(time.Second))).UnixNano()
	return otlp.Span{Trace: a.trace, ID: otlp.SpanID{id}, Parent: parent, Name: name, Proc: "engine", Start: uint64(at), End: uint64(at + int64(dur*1e9))}
}

// sentTwo are a span and its child.
func sentTwo(a *Active) []otlp.Span {
	outer := sent(a, "Executor init", 1, a.root, 0.1, 1)
	return []otlp.Span{sent(a, "Load model", 2, outer.ID, 0.2, 0.5), outer}
}

func names(t placement.Trace) (out []string) {
	for _, p := range t.Phases {
		out = append(out, p.Name)
	}
	return out
}

func TestTimesAreRelativeToTheBeginAndWorkDoneBeforeIsMarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := memory(t, Options{})
		at := time.Now()
		a := r.Begin(head("p1"), "", at)
		a.Phase("import", "zygote", at.Add(-30*time.Second), 20*time.Second)
		a.Phase("bind", "agent", at.Add(5*time.Millisecond), time.Millisecond)
		a.Phase("still importing", "zygote", at.Add(-time.Second), 2*time.Second)
		r.take([]otlp.Span{sent(a, "Load model", 1, a.root, 0.5, 0.25)}, nil)
		a.Ready(at.Add(2 * time.Second))

		got, ok := r.Get("p1")
		require.True(t, ok)
		assert.Equal(t, 2.0, got.Total)
		assert.Equal(t, []string{"import", "still importing", "bind", "Load model"}, names(got))
		p := got.Phases
		assert.Equal(t, []any{-30.0, 20.0, true}, []any{p[0].Start, p[0].Duration, p[0].Before})
		assert.False(t, p[1].Before, "it went on after the request")
		assert.InDelta(t, 0.5, p[3].Start, 1e-6)
		assert.InDelta(t, 0.25, p[3].Duration, 1e-6)
		assert.Equal(t, "engine", p[3].Proc)
		assert.Equal(t, p[2].Parent, p[3].Parent, "ours and the engine's hang from the same root")
		assert.NotEqual(t, p[2].SpanID, p[3].SpanID)
	})
}

func TestCallersTraceIsTakenOver(t *testing.T) {
	r := memory(t, Options{})
	const id = "0af7651916cd43dd8448eb211c80319c"
	a := r.Begin(head("p1"), "00-"+id+"-b7ad6b7169203331-00", time.Now())
	assert.Equal(t, id, a.TraceID())
	assert.Regexp(t, "^00-"+id+"-[0-9a-f]{16}-01$", a.Traceparent(), "its trace, our span, and sampled")
	assert.NotContains(t, a.Traceparent(), "b7ad6b7169203331")
	_, ok := r.Get(id)
	assert.True(t, ok, "a trace is also found by its trace id")

	for _, bad := range []string{
		"", "x", "00-" + id, "00-" + id + "-0000000000000000-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01",
		"ff-" + id + "-b7ad6b7169203331-01", "00-" + strings.ToUpper(id) + "-b7ad6b7169203331-01", "00-" + id + "-b7ad6b7169203331-01-more",
		"0x-" + id + "-b7ad6b7169203331-01", "00-" + id[:31] + "g-b7ad6b7169203331-01",
	} {
		a := r.Begin(head("p"), bad, time.Now())
		assert.NotEqual(t, id, a.TraceID(), "%q", bad)
		assert.Len(t, a.TraceID(), 32)
	}
}

func TestLateSpansJoinForTenSecondsAndThenNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finished := make(chan placement.Trace, 10)
		r := memory(t, Options{Dir: t.TempDir(), OnFinish: func(t placement.Trace) { finished <- t }})
		stop := keep(r)
		a := r.Begin(head("p1"), "", time.Now())
		a.Ready(time.Now())
		synctest.Wait()
		assert.Len(t, r.history.items, 1, "an ended trace is on disk at once")
		assert.Empty(t, finished)
		time.Sleep(9 * time.Second)
		r.take([]otlp.Span{sent(a, "late", 1, a.root, 0, 1)}, nil)
		synctest.Wait()
		assert.Empty(t, finished)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Len(t, finished, 1, "finished once")
		last := <-finished
		assert.Equal(t, []string{"late"}, names(last))
		r.take([]otlp.Span{sent(a, "too late", 2, a.root, 0, 1)}, nil)
		a.Phase("also too late", "agent", time.Now(), 0)
		got, _ := r.Get("p1")
		assert.Equal(t, []string{"late"}, names(got))
		stop()
		assert.Empty(t, finished, "and only once")

		again := memory(t, Options{Dir: r.opt.Dir})
		got, ok := again.Get("p1")
		require.True(t, ok, "it survives a restart")
		assert.Equal(t, last, got)
	})
}

func TestFirstEndWins(t *testing.T) {
	r := memory(t, Options{})
	a := r.Begin(head("p1"), "", time.Now())
	a.Fail("the engine died")
	a.Ready(time.Now().Add(time.Second))
	a.Fail("again")
	got := a.Trace()
	assert.Equal(t, "the engine died", got.Failed)
	assert.Zero(t, got.Total)
	b := r.Begin(head("p2"), "", time.Now())
	b.Fail("")
	assert.NotEmpty(t, b.Trace().Failed, "a failure is never mistaken for a start that goes on")
}

func TestEndOfRunFinishesWhatHasEndedAndLeavesWhatGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		r := memory(t, Options{Dir: t.TempDir(), OnFinish: func(placement.Trace) { n++ }})
		stop := keep(r)
		a := r.Begin(head("ended"), "", time.Now())
		r.Begin(head("going on"), "", time.Now())
		a.Ready(time.Now().Add(time.Second))
		stop()
		assert.Equal(t, 1, n)
		again := memory(t, Options{Dir: r.opt.Dir})
		require.Len(t, again.List(), 2)
		got, _ := again.Get("going on")
		assert.Equal(t, interrupted, got.Failed)
	})
}

func TestSpansOfTwoStartsInOneTraceGoWhereTheirAncestorsAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := memory(t, Options{})
		const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		a := r.Begin(head("a"), parent, time.Now())
		r.take([]otlp.Span{sent(a, "a1", 1, a.root, 0, 1)}, nil)
		b := r.Begin(head("b"), parent, time.Now())
		// Children come before their parents, as exporters send them.
		r.take([]otlp.Span{sent(b, "b3", 13, otlp.SpanID{12}, 2, 1), sent(a, "a2", 2, otlp.SpanID{1}, 1, 1)}, nil)
		assert.Equal(t, []string{"a1", "a2"}, names(a.Trace()))
		assert.Empty(t, b.Trace().Phases, "its parent is not known yet")
		r.take([]otlp.Span{sent(b, "b2", 12, otlp.SpanID{11}, 1, 1)}, nil)
		joined := r.take([]otlp.Span{sent(b, "b1", 11, b.root, 0, 1)}, nil)
		assert.Len(t, joined, 3)
		assert.Equal(t, []string{"b1", "b2", "b3"}, names(b.Trace()))

		r.take([]otlp.Span{sent(a, "ring", 21, otlp.SpanID{22}, 0, 1), sent(a, "ring", 22, otlp.SpanID{21}, 0, 1), sent(a, "orphan", 23, otlp.SpanID{99}, 0, 1)}, nil)
		b.Fail("x")
		r.settle(time.Now(), true)
		r.take([]otlp.Span{sent(b, "of the finished one", 24, b.root, 0, 1)}, nil)
		assert.Equal(t, []string{"a1", "a2"}, names(a.Trace()), "the one that is left does not inherit")
	})
}

func TestRepeatedBatchesCountOnce(t *testing.T) {
	r := memory(t, Options{})
	a := r.Begin(head("a"), "", time.Now())
	s := sent(a, "x", 1, a.root, 0, 1)
	assert.Len(t, r.take([]otlp.Span{s, s}, nil), 1)
	assert.Empty(t, r.take([]otlp.Span{s}, nil))
	assert.Len(t, a.Trace().Phases, 1)
}

func TestWhatEnginesMakeUsHoldIsBounded(t *testing.T) {
	r := memory(t, Options{})
	a := r.Begin(head("a"), "", time.Now())
	b := r.Begin(head("b"), a.Traceparent(), time.Now())
	for i := range 3 * maxPhases {
		id := otlp.SpanID{1, byte(i), byte(i >> 8), byte(i >> 16)}
		s := sent(a, "n", 0, a.root, 0, 1)
		s.ID = id
		o := sent(a, "orphan", 0, otlp.SpanID{99}, 0, 1)
		o.ID = otlp.SpanID{2, byte(i), byte(i >> 8)}
		r.take([]otlp.Span{s, o}, nil)
	}
	assert.Len(t, a.Trace().Phases, maxPhases)
	assert.Len(t, r.families[a.trace].waiting, maxWaiting)
	assert.LessOrEqual(t, len(r.families[a.trace].parents), maxParents)
	assert.Equal(t, 4*maxPhases, r.Lost())
	assert.Empty(t, b.Trace().Phases)
	for i := range 2 * maxOpen {
		r.Begin(head(fmt.Sprint(i)), "", time.Now())
	}
	assert.Len(t, r.open, maxOpen)
	assert.Len(t, r.families, maxOpen)
}

func TestSpansWithImpossibleTimesAreLost(t *testing.T) {
	r := memory(t, Options{})
	a := r.Begin(head("a"), "", time.Now())
	now := uint64(time.Now().UnixNano())
	r.take([]otlp.Span{
		{Trace: a.trace, ID: otlp.SpanID{1}, Start: 0, End: 1}, {Trace: a.trace, ID: otlp.SpanID{2}, Start: 1 << 63, End: 1 << 63}, {Trace: a.trace, ID: otlp.SpanID{3}, Start: 1, End: 1<<64 - 1},
		{Trace: a.trace, ID: otlp.SpanID{4}, Name: "backwards", Start: now, End: now - 100},
	}, nil)
	assert.Equal(t, 3, r.Lost())
	require.Equal(t, []string{"backwards"}, names(a.Trace()))
	assert.Zero(t, a.Trace().Phases[0].Duration)
}

func TestStartsAreNeverHeldUpByTheHistory(t *testing.T) {
	stuck, release := make(chan struct{}), make(chan struct{})
	r := memory(t, Options{OnFinish: func(placement.Trace) { close(stuck); <-release }})
	stop := keep(r)
	a := r.Begin(head("a"), "", time.Now())
	a.Ready(time.Now())
	r.mu.Lock()
	a.ended = a.ended.Add(-lateWindow) // its time is over
	r.mu.Unlock()
	r.wake()
	<-stuck // the keeper hangs, in a callback as it would in a write

	const n = 10000
	b := r.Begin(head("b"), "", time.Now())
	began := time.Now()
	for range n / maxPhases * maxPhases {
		b.Phase("p", "agent", began, time.Second)
	}
	for range 1000 {
		r.Begin(head("c"), "", began).Fail("x")
	}
	assert.Less(t, time.Since(began), 20*time.Second, "microseconds each: nothing waits")
	r.Get("a")
	r.List()
	close(release)
	r.opt.OnFinish = nil
	stop()
}

func TestHistoryKeepsTheNewestWithinItsBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := memory(t, Options{Dir: dir, Keep: 5})
		for i := range 12 {
			r.Begin(head(fmt.Sprintf("p%02d", i)), "", time.Now()).Ready(time.Now().Add(time.Second))
			time.Sleep(time.Second)
		}
		r.settle(time.Now(), true)
		check := func(r *Recorder, want ...string) {
			var got []string
			for _, tr := range r.List() {
				got = append(got, tr.Placement)
			}
			assert.Equal(t, want, got, "newest first")
			files, _ := os.ReadDir(dir)
			assert.Len(t, files, len(want))
		}
		check(r, "p11", "p10", "p09", "p08", "p07")
		check(memory(t, Options{Dir: dir, Keep: 3}), "p11", "p10", "p09")
		size := r.history.items[4].size
		check(memory(t, Options{Dir: dir, MaxBytes: 2*size + 1}), "p11", "p10")

		r = memory(t, Options{Dir: dir, MaxBytes: 2*size + 20})
		r.Begin(head("p12"), "", time.Now()).Ready(time.Now().Add(time.Second))
		r.settle(time.Now(), true)
		check(r, "p12", "p11")
	})
}

func TestTornAndStrangeFilesAreIgnoredAndNamed(t *testing.T) {
	dir := t.TempDir()
	r := memory(t, Options{Dir: dir})
	a := r.Begin(head("good"), "", time.Now())
	a.Phase("x", "agent", time.Now(), 1)
	a.Ready(time.Now().Add(time.Second))
	r.settle(time.Now(), true)
	good := r.history.items[0].name
	data, err := os.ReadFile(filepath.Join(dir, good))
	require.NoError(t, err)
	for cut := range data { // a write torn at any byte
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("1-%06d%s", cut, fileSuffix)), data[:cut], 0o600))
	}
	for name, text := range map[string]string{
		"2-version" + fileSuffix: `{"version":2,"trace":{"placement":"p"}}`, "2-nobody" + fileSuffix: `{"version":1,"trace":{}}`,
		"2-other" + fileSuffix: `[1]`, "2-left" + fileSuffix + tempSuffix: "x", "notes.txt": "not ours",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "2-link"+fileSuffix)))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "2-dir"+fileSuffix), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "2-huge"+fileSuffix), bytes.Repeat([]byte("a"), maxFile+1), 0o600))

	var log bytes.Buffer
	r = memory(t, Options{Dir: dir, Keep: 10000, Log: slog.New(slog.NewTextHandler(&log, nil))})
	require.Len(t, r.List(), 1)
	assert.Equal(t, "good", r.List()[0].Placement)
	assert.Contains(t, log.String(), "1-000000"+fileSuffix)
	assert.Contains(t, log.String(), fmt.Sprintf("count=%d", len(data)+4))
	assert.Less(t, log.Len(), 4096, "one line, not one per file")
	assert.NoFileExists(t, filepath.Join(dir, "2-left"+fileSuffix+tempSuffix))
	assert.FileExists(t, filepath.Join(dir, "notes.txt"))

	r = memory(t, Options{Dir: dir, Keep: 1})
	assert.Len(t, r.history.items, 1, "what cannot be read grows old like the rest")
}

func TestDiskThatTakesNothingLeavesTheTraceInMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	var log bytes.Buffer
	r := memory(t, Options{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, os.RemoveAll(dir)) // root may write anywhere: a missing folder stands for a full disk
	for range 3 {
		r.Begin(head("p"), "", time.Now()).Ready(time.Now())
	}
	r.settle(time.Now(), true)
	assert.Len(t, r.List(), 3)
	assert.Equal(t, 1, strings.Count(log.String(), "memory only"), "told once")
	require.NoError(t, os.Mkdir(dir, 0o700))
	r.Begin(head("q"), "", time.Now()).Ready(time.Now())
	r.settle(time.Now(), true)
	assert.Contains(t, log.String(), "written again")
	assert.Len(t, memory(t, Options{Dir: dir}).List(), 1)
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	_, err := New(Options{Addr: "0.0.0.0:0"})
	require.ErrorContains(t, err, "loopback")
	f := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(f, nil, 0o600))
	_, err = New(Options{Dir: f})
	require.ErrorContains(t, err, "open trace history")
	for _, url := range []string{"collector:4318", "unix:///x", "http://", "https:/x"} {
		_, err = New(Options{Collector: url})
		require.ErrorContains(t, err, "http://host:port", "%s", url)
	}
}
