package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/agent/api"
	"warmd/agent/internal/gpu"
	"warmd/placement"
)

func claimOf(attempt int, r placement.Request) api.Claim {
	return api.Claim{Attempt: attempt, Request: r, DeadlineSeconds: 20}
}

// raw sends a body as it is and returns status and refusal.
func (n *node) raw(method, path string, body io.Reader) (int, placement.Error) {
	n.t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.cfg.Socket)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(n.t.Context(), method, "http://warmd"+path, body)
	require.NoError(n.t, err)
	resp, err := (&http.Client{Transport: tr}).Do(req)
	require.NoError(n.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(n.t, err)
	var e placement.Error
	_ = json.Unmarshal(text, &e)
	return resp.StatusCode, e
}

func TestBadInputIsRefusedByName(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	require.NoError(t, os.MkdirAll(filepath.Join(n.dir, "models2"), 0o755))
	n.start()
	ok := `{"attempt":1,"request":{"model":"tiny"}}`
	for name, c := range map[string]struct {
		id, body string
		status   int
		code     placement.Code
		says     string
	}{
		"no JSON":           {"p", "model=tiny", 400, placement.CodeBadRequest, "decode body"},
		"nothing":           {"p", "", 400, placement.CodeBadRequest, "decode body"},
		"two values":        {"p", ok + ok, 400, placement.CodeBadRequest, "more than one"},
		"unknown field":     {"p", `{"attempt":1,"request":{"model":"tiny","color":1}}`, 400, placement.CodeBadRequest, "color"},
		"wrong type":        {"p", `{"attempt":"one","request":{"model":"tiny"}}`, 400, placement.CodeBadRequest, "attempt"},
		"a JSON bomb":       {"p", strings.Repeat("[", 100000), 400, placement.CodeBadRequest, "nests deeper"},
		"too large":         {"p", `{"request":{"model":"` + strings.Repeat("x", api.MaxBody) + `"}}`, 400, placement.CodeBadRequest, "larger than"},
		"no attempt":        {"p", `{"request":{"model":"tiny"}}`, 400, placement.CodeBadRequest, "attempt"},
		"negative deadline": {"p", `{"attempt":1,"deadline_seconds":-1,"request":{"model":"tiny"}}`, 400, placement.CodeBadRequest, "deadline_seconds"},
		"no model":          {"p", `{"attempt":1,"request":{}}`, 400, placement.CodeBadRequest, "model"},
		"a flag as model":   {"p", `{"attempt":1,"request":{"model":"--port=1"}}`, 400, placement.CodeBadRequest, "flag"},
		"a strange id":      {"%2e%2e", ok, 400, placement.CodeBadRequest, "request_id"},
		"unknown model":     {"p", `{"attempt":1,"request":{"model":"nope"}}`, 422, placement.CodeModelNotFound, "nope"},
		"a way out":         {"p", `{"attempt":1,"request":{"model":"../models2"}}`, 422, placement.CodeModelNotFound, ".."},
		"outside the roots": {"p", `{"attempt":1,"request":{"model":"/etc"}}`, 422, placement.CodeModelNotFound, "model root"},
		"unknown runtime":   {"p", `{"attempt":1,"request":{"model":"tiny","runtime":"vllm9"}}`, 422, placement.CodeUnknownRuntime, "toy"},
		"unknown device":    {"p", `{"attempt":1,"device":"gpu-9","request":{"model":"tiny"}}`, 404, placement.CodeNotFound, "gpu-9"},
		"an argument":       {"p", `{"attempt":1,"request":{"model":"tiny","args":["--trust-remote-code"]}}`, 403, placement.CodeArgRefused, "--trust-remote-code"},
		"warm from exec":    {"p", `{"attempt":1,"request":{"model":"tiny","start":"warm"}}`, 409, placement.CodeNoWarm, "exec"},
		"a library":         {"p", `{"attempt":1,"request":{"model":"tiny","env":{"LD_PRELOAD":"x"}}}`, 403, placement.CodeArgRefused, "LD_PRELOAD"},
	} {
		t.Run(name, func(t *testing.T) {
			status, e := n.raw("PUT", "/v1/placements/"+c.id, strings.NewReader(c.body))
			require.Equal(t, c.status, status, "%+v", e)
			require.Equal(t, c.code, e.Code)
			require.Contains(t, e.Message+" "+e.Field, c.says)
		})
	}
	d := n.device()
	require.Equal(t, 2, d.Free, "and nothing is left of any of them")
}

func TestUnknownThingsAreNotFound(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	for _, path := range []string{"/v1/placements/x", "/v1/placements/x/trace", "/v1/placements/x/logs", "/v2/placements", "/"} {
		status, e := n.raw("GET", path, nil)
		require.Equal(t, 404, status, path)
		require.Equal(t, placement.CodeNotFound, e.Code)
	}
	status, e := n.raw("DELETE", "/v1/placements/x?grace_seconds=soon", nil)
	require.Equal(t, 400, status)
	require.Equal(t, "grace_seconds", e.Field)
}

func TestAReleaseThatOvertakesItsClaimWins(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	p, err := n.client.Release(t.Context(), "p1", 0)
	require.NoError(t, err)
	require.Equal(t, placement.Released, p.State)
	last, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Equal(t, placement.EventReleased, last.Event)
	require.Equal(t, 2, n.device().Free)
}

func TestARefusalCarriesTheCapacity(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	_, err := n.place("p1", 1, placement.Request{Model: "nope"})
	e := placement.AsError(err)
	require.Equal(t, placement.CodeModelNotFound, e.Code)
	require.NotNil(t, e.Capacity)
	require.Equal(t, 2, e.Capacity.Devices[0].Free)
}

func TestStaleAttemptsAreRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	_, err := n.place("p1", 3, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	_, err = n.place("p1", 2, placement.Request{Model: "tiny"})
	require.Equal(t, placement.CodeStaleAttempt, placement.AsError(err).Code)
	_, err = n.place("p1", 3, placement.Request{Model: "tiny", Name: "other"})
	require.Equal(t, placement.CodeConflict, placement.AsError(err).Code)
	last, err := n.place("p1", 4, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Equal(t, placement.EventReady, last.Event)
	require.Equal(t, 1, n.device().Busy, "taken over, not started twice")
}

func TestADrainOutlivesARestart(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	c, err := n.client.SetDrain(t.Context(), true)
	require.NoError(t, err)
	require.True(t, c.Draining)
	require.NoError(t, n.stop())
	n.run(n.cfg)
	_, err = n.place("p1", 1, placement.Request{Model: "tiny"})
	require.Equal(t, placement.CodeDraining, placement.AsError(err).Code)
	c, err = n.client.SetDrain(t.Context(), false)
	require.NoError(t, err)
	require.False(t, c.Draining)
	last, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Equal(t, placement.EventReady, last.Event)
}

func TestTheGenerationGrowsWithEveryChange(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	first := n.agent.Capacity()
	require.NotZero(t, first.Epoch)
	last, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Greater(t, last.Capacity.Generation, first.Generation)
	require.Equal(t, first.Epoch, last.Capacity.Epoch)
	quiet := n.agent.Capacity()
	require.Equal(t, quiet.Generation, n.agent.Capacity().Generation, "asking changes nothing")
}

func TestEventsAreKeptAndFollowed(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	_, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	var kinds []string
	require.NoError(t, n.client.Events(t.Context(), false, func(e placement.Event) bool { kinds = append(kinds, e.Kind); return true }))
	require.Contains(t, kinds, "placement.accepted")
	require.Contains(t, kinds, "placement.ready")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() { _, _ = n.client.Release(context.Background(), "p1", 0) }()
	require.NoError(t, n.client.Events(ctx, true, func(e placement.Event) bool { return e.Kind != "placement.released" }))
}

func TestTheEventRingForgetsTheOldest(t *testing.T) {
	e := newEvents()
	for i := range keptEvents + 10 {
		e.add(placement.Event{Message: fmt.Sprint(i)})
	}
	all, _ := e.after(0)
	require.Len(t, all, keptEvents)
	require.Equal(t, "10", all[0].Message)
	require.EqualValues(t, keptEvents+10, all[len(all)-1].Seq)
	few, wake := e.after(keptEvents + 8)
	require.Len(t, few, 2)
	e.add(placement.Event{})
	<-wake
	again, _ := e.after(1 << 40)
	require.Len(t, again, keptEvents, "a number of an earlier life asks for everything")
}

func TestMetricsSayWhatHappened(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	_, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	_, _ = n.place("p2", 1, placement.Request{Model: "nope"})
	resp, err := n.client.Open(t.Context(), "GET", "/metrics", nil, nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	for _, want := range []string{
		`warmd_start_seconds_count{tier="cold"} 1`, `warmd_placements_total{result="ready"} 1`,
		`warmd_claims_total{code="accepted"} 1`, `warmd_claims_total{code="model_not_found"} 1`,
		`warmd_workers{device="cpu-0",runtime="toy",state="serving"} 1`, `warmd_slots{device="cpu-0",use="free"} 1`,
		`warmd_view_age_seconds{node="n1"} 0`,
	} {
		require.Contains(t, string(text), want)
	}
}

func TestTheTraceOfAStartIsKept(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	last, err := n.place("p1", 1, placement.Request{Model: "tiny", Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
	require.NoError(t, err)
	tr, err := n.client.Trace(t.Context(), "p1")
	require.NoError(t, err)
	require.Equal(t, "0af7651916cd43dd8448eb211c80319c", tr.TraceID)
	require.Equal(t, tr.TraceID, last.Placement.TraceID)
	require.Equal(t, placement.TierCold, tr.Tier)
	require.InDelta(t, last.Placement.StartSeconds, tr.Total, 2)
	var names []string
	for _, p := range tr.Phases {
		names = append(names, p.Name)
	}
	require.Subset(t, names, []string{"journal", "spawn", "first token"})
	all, err := n.client.Traces(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 1)
}

func TestNoTraceIsKeptWhenNoneIsWanted(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *Config) { c.KeepTraces = 0 })
	n.start()
	last, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Equal(t, placement.EventReady, last.Event)
	require.Empty(t, last.Placement.TraceID)
	all, err := n.client.Traces(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
}

// A client that sends a byte now and then is cut off; others are not held up.
func TestASlowClientIsCutOff(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	c, err := net.Dial("unix", n.cfg.Socket)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("PUT /v1/placements/p1 HTTP/1.1\r\nHost: x\r\n"))
	require.NoError(t, err)
	begin := time.Now()
	last, err := n.place("p2", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	require.Equal(t, placement.EventReady, last.Event)
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	text, err := io.ReadAll(c)
	require.NoError(t, err, "the server closes it")
	require.NotContains(t, string(text), "200 OK")
	require.Less(t, time.Since(begin), 30*time.Second)
}

func TestAStartWithoutAFollowerIsGivenUp(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *Config) { c.FollowGrace = 300 * time.Millisecond })
	n.start()
	ctx, cancel := context.WithCancel(t.Context())
	err := n.client.Place(ctx, "p1", claimOf(1, placement.Request{Model: "tiny", Name: "hang"}), func(p placement.Progress) bool {
		cancel() // the coordinator dies
		return true
	})
	require.Error(t, err)
	require.Eventually(t, func() bool {
		p, err := n.client.Placement(t.Context(), "p1")
		return err == nil && p.State == placement.Failed
	}, 20*time.Second, 20*time.Millisecond)
	require.Equal(t, 2, n.device().Free)
}

func TestADeadlineEndsTheEngineAndShowsItsLog(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	var last placement.Progress
	err := n.client.Place(t.Context(), "p1", api.Claim{Attempt: 1, DeadlineSeconds: 2.5, Request: placement.Request{Model: "tiny", Name: "hang"}},
		func(p placement.Progress) bool { last = p; return true })
	require.NoError(t, err)
	require.Equal(t, placement.CodeTimeout, last.Error.Code)
	require.Contains(t, last.Error.Detail, "still loading, for ever")
	require.Equal(t, 2, last.Capacity.Devices[0].Free)
}

func TestLogsAreTailedAndFollowedToTheEnd(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	_, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	rc, err := n.client.Logs(t.Context(), "p1", 0, true)
	require.NoError(t, err)
	defer rc.Close()
	_, err = n.client.Release(t.Context(), "p1", 0)
	require.NoError(t, err)
	_, err = io.ReadAll(rc)
	require.NoError(t, err, "the stream ends with the placement")
}

func TestSeekTailFindsTheLastLines(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc", 2, "b\nc"}, {"a\nb\n", 9, "a\nb\n"}, {"", 3, ""}, {"a\n", 0, ""}, {"one line", 1, "one line"}, {"\n\n\n", 2, "\n\n"},
	} {
		path := filepath.Join(t.TempDir(), "log")
		require.NoError(t, os.WriteFile(path, []byte(c.text), 0o600))
		f, err := os.Open(path)
		require.NoError(t, err)
		require.NoError(t, seekTail(f, c.n))
		var b bytes.Buffer
		_, err = io.Copy(&b, f)
		require.NoError(t, err)
		require.Equal(t, c.want, b.String(), "%q %d", c.text, c.n)
		_ = f.Close()
	}
}

func TestASocketInUseIsNotTakenAway(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.start()
	other := n.cfg
	other.DataDir = filepath.Join(n.dir, "data2")
	_, err := New(other, n.opt)
	require.ErrorContains(t, err, "another server answers there")
}

func TestTwoListenersServeTheSame(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *Config) { c.Listen = []string{"127.0.0.1:0"} })
	n.start()
	require.NotEmpty(t, n.agent.Addr())
	c, err := api.NewClient(n.agent.Addr(), nil)
	require.NoError(t, err)
	defer c.Close()
	f, err := c.Fleet(t.Context())
	require.NoError(t, err)
	require.Equal(t, "n1", f.Nodes[0].Node)
	require.Equal(t, n.agent.Addr(), f.Nodes[0].Addr)
	require.Equal(t, gpu.CPUDevice, f.Nodes[0].Devices[0].ID)
}
