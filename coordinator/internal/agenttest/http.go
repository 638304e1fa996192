package agenttest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	agentapi "warmd/agent/api"
	"warmd/placement"
)

// Serve serves the agent's API over HTTP until the test ends, and returns its address.
func (a *Agent) Serve(t testing.TB) string {
	srv := httptest.NewServer(a.Handler())
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	a.Addr = strings.TrimPrefix(srv.URL, "http://")
	return a.Addr
}

// Handler is the agent's API, with made-up traces, logs and events.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/placements/{id}", func(w http.ResponseWriter, r *http.Request) {
		var c agentapi.Claim
		if err := agentapi.ReadJSON(w, r, &c); err != nil {
			agentapi.WriteError(w, err)
			return
		}
		var lines *agentapi.Lines
		err := a.Place(r.Context(), r.PathValue("id"), c, func(p placement.Progress) bool {
			if lines == nil {
				lines = agentapi.NewLines(w, http.StatusOK)
			}
			return lines.Write(p) == nil
		})
		if err != nil && lines == nil && !errors.Is(err, context.Canceled) {
			agentapi.WriteError(w, err)
		}
	})
	answer := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r)
			if err != nil {
				agentapi.WriteError(w, err)
				return
			}
			agentapi.WriteJSON(w, http.StatusOK, v)
		})
	}
	answer("GET /v1/placements", func(*http.Request) (any, error) { return a.Held(), nil })
	answer("GET /v1/placements/{id}", func(r *http.Request) (any, error) { return a.Get(r.PathValue("id")) })
	answer("DELETE /v1/placements/{id}", func(r *http.Request) (any, error) { return a.Release(r.PathValue("id")) })
	answer("POST /v1/placements/{id}/sleep", func(r *http.Request) (any, error) { return a.Rest(r.PathValue("id"), true) })
	answer("POST /v1/placements/{id}/wake", func(r *http.Request) (any, error) { return a.Rest(r.PathValue("id"), false) })
	answer("GET /v1/placements/{id}/trace", func(r *http.Request) (any, error) { return a.trace(r.PathValue("id")) })
	answer("GET /v1/traces", func(*http.Request) (any, error) {
		all := []placement.Trace{}
		for _, p := range a.Held() {
			tr, _ := a.trace(p.ID)
			all = append(all, tr)
		}
		return all, nil
	})
	answer("GET /v1/workers", func(*http.Request) (any, error) {
		all := []agentapi.Worker{}
		for _, p := range a.Held() {
			all = append(all, agentapi.Worker{ID: p.Worker, Node: a.Name, Device: p.Device, Runtime: p.Runtime, Generation: 1, State: "serving", Placement: p.ID, Since: p.Updated})
		}
		return all, nil
	})
	answer("GET /v1/node", func(*http.Request) (any, error) {
		return agentapi.NodeStatus{Capacity: a.Capacity(), Ready: true}, nil
	})
	answer("POST /v1/drain", func(*http.Request) (any, error) { return a.SetDrain(true), nil })
	answer("POST /v1/undrain", func(*http.Request) (any, error) { return a.SetDrain(false), nil })
	mux.HandleFunc("GET /v1/placements/{id}/logs", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "log of "+r.PathValue("id")+" tail "+r.URL.Query().Get("tail")+"\n")
	})
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		e := placement.Event{Seq: 1, At: time.Now().UTC(), Node: a.Name, Kind: "zygote.up", Message: "zygote is up"}
		if r.URL.Query().Get("follow") == "" {
			agentapi.WriteJSON(w, http.StatusOK, []placement.Event{e})
			return
		}
		_ = agentapi.NewLines(w, http.StatusOK).Write(e)
		<-r.Context().Done()
	})
	return mux
}

func (a *Agent) trace(id string) (placement.Trace, error) {
	p, err := a.Get(id)
	if err != nil {
		return placement.Trace{}, err
	}
	return placement.Trace{Placement: id, TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", Node: a.Name, Device: p.Device, Runtime: p.Runtime, Model: p.Request.Model,
		Tier: p.Tier, Begin: p.Updated, Total: 0.5, Phases: []placement.Phase{{Name: "Load model", Proc: "engine", Start: 0.1, Duration: 0.3}}}, nil
}
