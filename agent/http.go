package agent

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"warmd/agent/api"
	"warmd/placement"
)

// routes is every route of agent/api; a test holds it against the rules in access.
func (a *Agent) routes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"PUT /v1/placements/{id}":        a.putPlacement,
		"GET /v1/placements":             a.listPlacements,
		"GET /v1/placements/{id}":        a.getPlacement,
		"DELETE /v1/placements/{id}":     a.deletePlacement,
		"POST /v1/placements/{id}/sleep": a.sleepPlacement,
		"POST /v1/placements/{id}/wake":  a.wakePlacement,
		"GET /v1/placements/{id}/trace":  a.getTrace,
		"GET /v1/placements/{id}/logs":   a.getLogs,
		"GET /v1/traces":                 a.listTraces,
		"GET /v1/workers":                func(w http.ResponseWriter, _ *http.Request) { api.WriteJSON(w, 200, a.Workers()) },
		"GET /v1/node":                   func(w http.ResponseWriter, _ *http.Request) { api.WriteJSON(w, 200, a.Node()) },
		"GET /v1/capacity":               a.getFleet,
		"GET /v1/nodes":                  a.getFleet,
		"GET /v1/events":                 a.getEvents,
		"POST /v1/drain":                 a.setDrain(true),
		"POST /v1/undrain":               a.setDrain(false),
		"GET /healthz":                   a.health,
		"GET /metrics":                   promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP,
	}
}

// handler serves the routes to everybody: Run puts the guard before it.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range a.routes() {
		mux.HandleFunc(pattern, h)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		api.WriteError(w, placement.Errorf(placement.CodeNotFound, "no such route: %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// Node is the node's exact state.
func (a *Agent) Node() api.NodeStatus {
	s := api.NodeStatus{
		Capacity: a.Capacity(), Started: a.started, Workers: a.Workers(), Ready: a.ready.Load(), PID: os.Getpid(), RunDir: a.cfg.RunDir,
	}
	for _, name := range a.runtimeNames {
		st := a.runtimes[name].Status()
		if st.PID > 0 {
			s.Zygotes = append(s.Zygotes, api.Zygote{Runtime: name, Generation: st.Generation, PID: st.PID})
		}
		if st.Zygote != "up" && st.Problem == "" {
			s.Ready = false
		}
	}
	return s
}

func (a *Agent) getFleet(w http.ResponseWriter, _ *http.Request) { api.WriteJSON(w, 200, a.Fleet()) }

func (a *Agent) health(w http.ResponseWriter, _ *http.Request) {
	if !a.ready.Load() {
		api.WriteError(w, placement.Errorf(placement.CodeUnavailable, "the agent is starting"))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprintln(w, "ok")
}

func (a *Agent) setDrain(on bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := a.SetDrain(r.Context(), on)
		if err != nil {
			api.WriteError(w, err)
			return
		}
		api.WriteJSON(w, 200, c)
	}
}

func (a *Agent) getEvents(w http.ResponseWriter, r *http.Request) {
	have, wake := a.events.after(0)
	if r.URL.Query().Get("follow") == "" {
		api.WriteJSON(w, 200, have)
		return
	}
	lines := api.NewLines(w, 200)
	var seq uint64
	for {
		for _, ev := range have {
			if lines.Write(ev) != nil {
				return
			}
			seq = ev.Seq
		}
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		}
		have, wake = a.events.after(seq)
	}
}

// number reads a query parameter within bounds.
func number(r *http.Request, key string, def, low, high float64) (float64, error) {
	s := r.URL.Query().Get(key)
	if s == "" {
		return def, nil
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v >= low && v <= high) {
		return 0, placement.AsError(&placement.FieldError{Field: key, Problem: fmt.Sprintf("%.40q must be a number between %g and %g", s, low, high)})
	}
	return v, nil
}

// rss adds up the resident memory of processes, 0 for those that are gone.
func rss(pids ...int) (sum int64) {
	for _, pid := range pids {
		raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
		if f := strings.Fields(string(raw)); err == nil && len(f) > 1 {
			pages, _ := strconv.ParseInt(f[1], 10, 64)
			sum += pages * int64(os.Getpagesize())
		}
	}
	return sum
}

// unknown is the answer for an id that this node does not hold.
func (a *Agent) unknown(id string) error {
	return placement.Errorf(placement.CodeNotFound, "node %s holds no placement %.130q", a.cfg.Node, id).
		WithHint("warmctl ps lists the placements and their nodes")
}
