package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"warmd/placement"
)

func TestMain(m *testing.M) {
	if os.Getenv("WARMD_FAKE_ENGINE") != "" {
		os.Exit(fakeEngine(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

// serveEngine answers as a vLLM server does, saying text token by token.
func serveEngine(w http.ResponseWriter, q *http.Request, text string) {
	if q.URL.Path == "/health" {
		return
	}
	for _, tok := range strings.SplitAfter(text, " ") {
		fmt.Fprintf(w, "data: {\"choices\":[{\"text\":%q}]}\n\n", tok)
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

func engineSaying(t *testing.T, text string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { serveEngine(w, q, text) }))
	t.Cleanup(srv.Close)
	return srv.URL
}

// saying is an arm whose engine says text and has a configuration.
func saying(t *testing.T, name, text, config string) Arm {
	url := engineSaying(t, text)
	return Arm{Name: name, Start: func(context.Context) (Started, error) {
		return Started{
			URL: url, Watch: idle, Trace: func(context.Context) placement.Trace { return placement.Trace{Begin: time.Now()} },
			Config: func(context.Context) string { return config }, End: func() error { return nil },
		}, nil
	}}
}

// idle is the Watch of a start that does not fail.
func idle(ctx context.Context) error { <-ctx.Done(); return nil }

func plan(runs int) Plan {
	return Plan{Model: "m", Runs: runs, Before: func() (Cached, error) { return Cached{1, 1}, nil }, Report: func(Sample) {}}
}

func TestArmsTakeTurnsInBeingFirstAndTheFirstRoundIsDiscarded(t *testing.T) {
	arms := []Arm{saying(t, "vllm", "to be", ""), saying(t, "warm", "to be", "")}
	var order []string
	p, prepared := plan(2), 0
	p.Before = func() (Cached, error) { prepared++; return Cached{0.5, -1}, nil }
	p.Report = func(s Sample) { order = append(order, s.Arm) }
	all, err := Run(t.Context(), arms, p)
	require.NoError(t, err)
	assert.Equal(t, []string{"vllm", "warm", "warm", "vllm", "vllm", "warm"}, order)
	assert.Equal(t, 6, prepared, "the page cache is prepared before every start, not every round")
	assert.True(t, all[0].Discarded && all[1].Discarded && !all[2].Discarded)
	assert.Equal(t, Cached{0.5, -1}, all[3].Cached)
	for _, s := range all {
		assert.Positive(t, s.Seconds)
		assert.LessOrEqual(t, s.Answers, s.Seconds)
	}
}

func TestArmsThatAreNotAlikeAreRefused(t *testing.T) {
	_, err := Run(t.Context(), []Arm{saying(t, "vllm", "to be", ""), saying(t, "warm", "not to be", "")}, plan(1))
	require.ErrorContains(t, err, `warm answers "not to be", vllm answers "to be"`)
	_, err = Run(t.Context(), []Arm{saying(t, "vllm", "x", "config: seed=0, dtype=bfloat16"), saying(t, "warm", "x", "config: seed=0, dtype=float32")}, plan(1))
	require.ErrorContains(t, err, "their engines have different flags")
	require.ErrorContains(t, err, "dtype=bfloat16")
	_, err = Run(t.Context(), []Arm{saying(t, "vllm", "x", "same"), saying(t, "warm", "x", "")}, plan(1))
	require.NoError(t, err, "an engine that says nothing is believed")
}

func TestServerThatOpensItsPortLateIsWaitedFor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.2:0") // those who ask for a port of 127.0.0.1 do not get it meanwhile
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	came := make(chan *http.Server, 1)
	time.AfterFunc(50*time.Millisecond, func() {
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { serveEngine(w, q, "late") })}
		l, err := net.Listen("tcp", addr)
		if err == nil {
			go func() { _ = srv.Serve(l) }()
		}
		came <- srv
	})
	begin := time.Now()
	got, err := ask(t.Context(), "http://"+addr, "m")
	require.NoError(t, err)
	defer (<-came).Close()
	assert.Equal(t, "late", got.text)
	assert.GreaterOrEqual(t, got.answers.Sub(begin), 50*time.Millisecond)
	assert.False(t, got.answers.After(got.token))

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = ask(gone, "http://127.0.0.1:1", "m")
	require.ErrorIs(t, err, context.Canceled)
}

func TestStartThatFailedIsEnded(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such model", 404) }))
	defer srv.Close()
	ended := false
	a := Arm{Name: "vllm", Start: func(context.Context) (Started, error) {
		return Started{URL: srv.URL, Watch: idle, End: func() error { ended = true; return errors.New("and the end failed") }}, nil
	}}
	_, err := Run(t.Context(), []Arm{a}, plan(1))
	require.ErrorContains(t, err, "run arm vllm")
	require.ErrorContains(t, err, "no such model")
	require.ErrorContains(t, err, "and the end failed")
	assert.True(t, ended)
}

func TestSleepingSaysWhatIsMissing(t *testing.T) {
	err := CanSleep(Runtime{Name: "rt", Device: "cpu"}, []string{"--enable-sleep-mode"})
	require.ErrorContains(t, err, "needs a GPU")
	assert.Equal(t, placement.CodeUnsupported, placement.AsError(err).Code)
	err = CanSleep(Runtime{Name: "rt", Device: "cuda"}, nil)
	require.ErrorContains(t, err, "--arg=--enable-sleep-mode")
	require.NoError(t, CanSleep(Runtime{Name: "rt", Device: "cuda"}, []string{"--enable-sleep-mode"}))
}

func TestAnArmIsReadyBeforeItsClockRuns(t *testing.T) {
	a := Arm{Name: "sleeping", Ready: func(context.Context) (func() error, error) { return nil, errors.New("no slot") }}
	_, err := Run(t.Context(), []Arm{a}, plan(1))
	require.ErrorContains(t, err, "run arm sleeping: no slot")
}

func TestWhatWasMadeReadyEndsWhenThereIsNoStart(t *testing.T) {
	for what, p := range map[string]Plan{
		"no page cache": {Before: func() (Cached, error) { return Cached{}, errors.New("no page cache") }},
		"no wake":       plan(1),
	} {
		ended := 0
		a := Arm{
			Name:  "sleeping",
			Ready: func(context.Context) (func() error, error) { return func() error { ended++; return nil }, nil },
			Start: func(context.Context) (Started, error) { return Started{}, errors.New("no wake") },
		}
		p.Runs = 1
		_, err := Run(t.Context(), []Arm{a}, p)
		require.ErrorContains(t, err, what)
		require.Equal(t, 1, ended, what)
	}
}
