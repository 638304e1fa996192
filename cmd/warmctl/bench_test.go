package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// engineSaying streams text as a completion, token by token.
func engineSaying(t *testing.T, text string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, tok := range strings.SplitAfter(text, " ") {
			fmt.Fprintf(w, "data: {\"choices\":[{\"text\":%q}]}\n\n", tok)
		}
		fmt.Fprint(w, "data: [DONE]\n\n")
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func armSaying(t *testing.T, name, text string, starts *int) arm {
	url := engineSaying(t, text)
	return arm{name: name, start: func(context.Context) (string, func() error, error) {
		*starts++
		return url, func() error { return nil }, nil
	}}
}

func TestBenchArmsTakeTurnsAndTheFirstRoundIsDiscarded(t *testing.T) {
	var plain, warm, touched int
	arms := []arm{armSaying(t, "vllm", "to be", &plain), armSaying(t, "warm", "to be", &warm)}
	var order []string
	all, err := interleave(t.Context(), arms, "m", 2, func() error { touched++; return nil }, func(s sample) { order = append(order, s.Arm) })
	require.NoError(t, err)
	assert.Equal(t, []string{"vllm", "warm", "vllm", "warm", "vllm", "warm"}, order)
	assert.Equal(t, 3, touched)
	assert.True(t, all[0].Discarded && all[1].Discarded && !all[2].Discarded)
	sum := summarise(arms, all)
	require.Len(t, sum, 2)
	assert.Equal(t, 2, sum[0].N)
	assert.InDelta(t, 1, sum[0].Ratio, 0)
	assert.InDelta(t, sum[0].P50/sum[1].P50, sum[1].Ratio, 1e-9)
}

func TestBenchRefusesToCompareArmsThatAnswerDifferently(t *testing.T) {
	var n int
	arms := []arm{armSaying(t, "vllm", "to be", &n), armSaying(t, "warm", "not to be", &n)}
	_, err := interleave(t.Context(), arms, "m", 1, func() error { return nil }, func(sample) {})
	require.ErrorContains(t, err, `warm answers "not to be", vllm answers "to be"`)
}

func TestBenchWaitsForAServerThatOpensItsPortLate(t *testing.T) {
	ready := time.AfterFunc(0, func() {})
	defer ready.Stop()
	url := engineSaying(t, "late")
	first, text, err := firstToken(t.Context(), url, "m")
	require.NoError(t, err)
	assert.Equal(t, "late", text)
	assert.False(t, first.IsZero())

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = firstToken(gone, "http://127.0.0.1:1", "m")
	require.ErrorIs(t, err, context.Canceled)
}

func TestBenchEndsAStartThatFailed(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such model", 404) }))
	defer srv.Close()
	ended := false
	a := arm{name: "vllm", start: func(context.Context) (string, func() error, error) {
		return srv.URL, func() error { ended = true; return errors.New("and the end failed") }, nil
	}}
	_, err := once(t.Context(), a, "m")
	require.ErrorContains(t, err, "no such model")
	require.ErrorContains(t, err, "and the end failed")
	assert.True(t, ended)
}

func TestBenchRefusesARuntimeWithoutBytecode(t *testing.T) {
	dir := t.TempDir()
	require.ErrorContains(t, needBytecode(filepath.Join(dir, "bin/python")), "--fix")
	pyc := filepath.Join(dir, "lib/python3.11/site-packages/vllm/__pycache__")
	require.NoError(t, os.MkdirAll(pyc, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(pyc, "x.pyc"), nil, 0o600))
	require.NoError(t, needBytecode(filepath.Join(dir, "bin/python")))
}

func TestQuantileIsTheNearestRank(t *testing.T) {
	v := []float64{1, 2, 3, 4, 5}
	for q, want := range map[float64]float64{0: 1, .5: 3, .95: 5, 1: 5} {
		assert.InDelta(t, want, quantile(v, q), 0)
	}
	assert.InDelta(t, 7, quantile([]float64{7}, .5), 0)
}
