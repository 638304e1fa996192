package device

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

func TestAnEndpointListensWhenToldAndNotBefore(t *testing.T) {
	p := &Ports{Host: "127.0.0.1"}
	e, err := p.Reserve()
	require.NoError(t, err)
	defer e.Close()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(e.Port))
	_, err = net.Dial("tcp", addr)
	require.Error(t, err, "a cold engine is to bind it")
	_, err = e.Listen()
	require.NoError(t, err)
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err, "clients queue in the backlog")
	_ = c.Close()
	require.False(t, e.Held())
	e.HandOver()
	require.True(t, e.Held())
	_, err = net.Dial("tcp", addr)
	require.Error(t, err)
	_, err = p.Bind(e.Port)
	require.ErrorContains(t, err, "another placement")
	e.Close()
	again, err := p.Bind(e.Port)
	require.NoError(t, err)
	again.Close()
	(*Endpoint)(nil).Close()
}

// The reservation must let the engine bind, whatever option its server sets.
func TestAColdEngineCanBindWhatIsReservedForIt(t *testing.T) {
	for _, opt := range []string{"SO_REUSEADDR", "SO_REUSEPORT"} {
		t.Run(opt, func(t *testing.T) {
			p := &Ports{Host: "127.0.0.1"}
			e, err := p.Reserve()
			require.NoError(t, err)
			defer e.Close()
			out, err := exec.Command("python3", "-c", `
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, getattr(socket, sys.argv[2]), 1)
s.bind(("127.0.0.1", int(sys.argv[1])))
s.listen()
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
s.accept()
`, strconv.Itoa(e.Port), opt).CombinedOutput()
			require.NoError(t, err, string(out))
		})
	}
}

// A restarted agent tells by this whether a worker was given its socket.
func TestAListeningEndpointCannotBeBoundAgain(t *testing.T) {
	p := &Ports{Host: "127.0.0.1"}
	e, err := p.Reserve()
	require.NoError(t, err)
	defer e.Close()
	_, err = e.Listen()
	require.NoError(t, err)
	_, err = (&Ports{Host: "127.0.0.1"}).Bind(e.Port)
	require.ErrorContains(t, err, "address already in use")
}

func TestATakenPortIsPassedOverAndAFullRangeIsRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	taken := ln.Addr().(*net.TCPAddr).Port
	if taken > 65000 {
		t.Logf("port %d leaves no room above it", taken)
	}
	p := &Ports{Host: "127.0.0.1", Low: taken, High: taken}
	_, err = p.Reserve()
	require.Equal(t, placement.CodeNoCapacity, placement.AsError(err).Code)
	require.Contains(t, err.Error(), "endpoint_ports")
	p.Low = taken - 3
	e, err := p.Reserve()
	require.NoError(t, err)
	require.NotEqual(t, taken, e.Port)
	e.Close()
}

func engine(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestProbeReturnsWithTheFirstToken(t *testing.T) {
	var asked atomic.Int32
	url := engine(t, func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		_ = json.NewDecoder(r.Body).Decode(&body)
		switch {
		case asked.Add(1) <= 2:
			http.Error(w, "loading", http.StatusServiceUnavailable)
		case body["model"] != "tiny" || body["max_tokens"] != 1.0:
			http.Error(w, "bad", http.StatusBadRequest)
		default:
			_, _ = w.Write([]byte(`{"choices":[{"text":"b"}]}`))
		}
	})
	require.NoError(t, Probe(t.Context(), url, "tiny"))
	require.EqualValues(t, 3, asked.Load())
}

func TestProbeAsksAChatOnlyModelInItsWay(t *testing.T) {
	url := engine(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/chat/completions" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(`{"choices":[{"message":{"content":"b"}}]}`))
	})
	require.NoError(t, Probe(t.Context(), url, "tiny"))
}

func TestProbeIsNotContentWithHTTP200(t *testing.T) {
	url := engine(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"status":"ok"}`)) })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := Probe(ctx, url, "tiny")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "without a choice")
}

func TestProbeSaysWhatTheEngineAnswered(t *testing.T) {
	url := engine(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the model `tiny` does not exist", http.StatusNotFound)
	})
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, errors.New("out of patience"))
	defer cancel()
	err := Probe(ctx, url, "tiny")
	require.ErrorContains(t, err, "out of patience")
	require.ErrorContains(t, err, "does not exist")
}

func TestProbeTriesUntilSomebodyListens(t *testing.T) {
	p := &Ports{Host: "127.0.0.1"}
	e, err := p.Reserve()
	require.NoError(t, err)
	defer e.Close()
	go func() {
		f, err := e.Listen()
		if err != nil {
			return
		}
		ln, err := net.FileListener(f)
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = ln.Close() })
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"choices":[{}]}`)) }))
	}()
	require.NoError(t, Probe(t.Context(), e.URL(), "tiny"))
}

// One believes a client error in the end: it will not go away by asking.
func TestProbeGivesUpOnALastingClientError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := time.Now()
		err := probe(t.Context(), "http://x", "m", func(context.Context, string, map[string]any) (int, error) {
			return http.StatusUnauthorized, errors.New("the engine answered 401")
		})
		require.ErrorContains(t, err, "401")
		require.InDelta(t, 3, time.Since(b).Seconds(), 0.5)
	})
}

// A worker that has died leaves its port to the kernel before its placement gives it back.
func TestAPortThatAPlacementStillHoldsIsNotReservedForAnother(t *testing.T) {
	p := &Ports{Host: "127.0.0.1"}
	for port := range 1 << 16 {
		if port%4 < 2 {
			p.Hold(port)
		}
	}
	for range 50 {
		e, err := p.Reserve()
		require.NoError(t, err)
		defer e.Close()
		require.GreaterOrEqual(t, e.Port%4, 2)
	}
}
