package coordinator

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	agentapi "warmd/agent/api"
	"warmd/coordinator/api"
	"warmd/placement"
)

// route is one line of the API; a test holds the table against openapi.yaml.
type route struct {
	method, path string
	handle       func(w http.ResponseWriter, r *http.Request) error
}

func (c *Coordinator) table() []route {
	return []route{
		{"POST", "/v1/placements", c.postPlacement},
		{"GET", "/v1/placements", c.getPlacements},
		{"GET", "/v1/placements/{id}", c.getPlacement},
		{"DELETE", "/v1/placements/{id}", c.deletePlacement},
		{"POST", "/v1/placements/{id}/sleep", c.sleepPlacement},
		{"POST", "/v1/placements/{id}/wake", c.wakePlacement},
		{"GET", "/v1/placements/{id}/trace", c.getTrace},
		{"GET", "/v1/placements/{id}/logs", c.getLogs},
		{"GET", "/v1/traces", c.getTraces},
		{"GET", "/v1/workers", c.getWorkers},
		{"GET", "/v1/capacity", c.getFleet},
		{"GET", "/v1/nodes", c.getFleet},
		{"POST", "/v1/nodes/{node}/drain", c.drain(true)},
		{"POST", "/v1/nodes/{node}/undrain", c.drain(false)},
		{"GET", "/v1/events", c.getEvents},
		{"GET", "/v1/status", c.getStatus},
		{"GET", "/metrics", c.getMetrics},
		{"GET", "/healthz", c.getHealth},
	}
}

// routes is the handler of the whole API. What no route knows is a placement.Error
// like every other refusal, so that clients parse one thing.
func (c *Coordinator) routes() http.Handler {
	mux := http.NewServeMux()
	allowed := map[string][]string{}
	for _, rt := range c.table() {
		allowed[rt.path] = append(allowed[rt.path], rt.method)
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) {
			if err := rt.handle(w, r); err != nil {
				c.writeError(w, r, err)
			}
		})
	}
	for path, methods := range allowed {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", strings.Join(methods, ", "))
			agentapi.WriteJSON(w, http.StatusMethodNotAllowed, placement.Errorf(placement.CodeBadRequest, "%s is not allowed on %s", r.Method, path).WithHint("use %s", strings.Join(methods, " or ")))
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		agentapi.WriteError(w, placement.Errorf(placement.CodeNotFound, "no route %s %s", r.Method, r.URL.Path).WithHint("coordinator/api/openapi.yaml lists the routes"))
	})
	return mux
}

func (c *Coordinator) writeError(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // nobody reads it
	}
	if placement.AsError(err).Code == placement.CodeInternal {
		c.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	agentapi.WriteError(w, err)
}

func (c *Coordinator) getFleet(w http.ResponseWriter, _ *http.Request) error {
	f := c.opt.View.Fleet()
	if f.Nodes == nil {
		f.Nodes = []placement.NodeView{}
	}
	agentapi.WriteJSON(w, http.StatusOK, f)
	return nil
}

func (c *Coordinator) getStatus(w http.ResponseWriter, r *http.Request) error {
	st := api.Status{Name: c.cfg.Name, Version: c.opt.Version}
	st.Etcd, _ = c.world.health.state()
	if c.election != nil && st.Etcd == "ok" {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		st.Leader, _ = c.election.Leader(ctx)
	}
	agentapi.WriteJSON(w, http.StatusOK, st)
	return nil
}

// getHealth says that this process serves. etcd being away is no reason to restart it.
func (c *Coordinator) getHealth(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := fmt.Fprintln(w, "ok")
	return err
}

func (c *Coordinator) getMetrics(w http.ResponseWriter, r *http.Request) error {
	g, ok := c.opt.Registerer.(prometheus.Gatherer)
	if !ok {
		g = prometheus.DefaultGatherer
	}
	promhttp.HandlerFor(g, promhttp.HandlerOpts{}).ServeHTTP(w, r)
	return nil
}
