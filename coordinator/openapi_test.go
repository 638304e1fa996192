package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentapi "warmd/agent/api"
	"warmd/placement"
)

func openAPI(t *testing.T) *openapi3.T {
	t.Helper()
	raw, err := os.ReadFile("api/openapi.yaml")
	require.NoError(t, err)
	doc, err := openapi3.NewLoader().LoadFromData(raw)
	require.NoError(t, err)
	require.NoError(t, doc.Validate(t.Context()))
	return doc
}

func TestEveryRouteIsDescribedAndEveryDescriptionHasARoute(t *testing.T) {
	doc := openAPI(t)
	described := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			described[method+" "+path] = true
		}
	}
	for _, rt := range (&Coordinator{}).table() {
		key := rt.method + " " + rt.path
		assert.True(t, described[key], "%s is not in openapi.yaml", key)
		delete(described, key)
	}
	assert.Empty(t, described, "described, but no handler has it")
}

// The schemas are written by hand; the types are what is sent. Each must name exactly
// the fields of the other.
func TestSchemasNameTheFieldsOfTheTypes(t *testing.T) {
	doc := openAPI(t)
	for name, v := range map[string]any{
		"Request": placement.Request{}, "Placement": placement.Placement{}, "Progress": placement.Progress{}, "Phase": placement.Phase{},
		"Trace": placement.Trace{}, "Event": placement.Event{}, "Worker": agentapi.Worker{}, "Device": placement.Device{}, "Runtime": placement.Runtime{},
		"Capacity": placement.Capacity{}, "Fleet": placement.Fleet{}, "Error": placement.Error{}, "Decision": placement.Decision{},
	} {
		schema := doc.Components.Schemas[name]
		require.NotNil(t, schema, name)
		compareFields(t, name, schema.Value, reflect.TypeOf(v))
	}
	compareFields(t, "Fleet.nodes", doc.Components.Schemas["Fleet"].Value.Properties["nodes"].Value.Items.Value, reflect.TypeFor[placement.NodeView]())
	compareFields(t, "Decision.candidates", doc.Components.Schemas["Decision"].Value.Properties["candidates"].Value.Items.Value, reflect.TypeFor[placement.Candidate]())
}

func compareFields(t *testing.T, name string, schema *openapi3.Schema, typ reflect.Type) {
	t.Helper()
	fields := map[string]bool{}
	var add func(reflect.Type)
	add = func(typ reflect.Type) {
		for f := range typ.Fields() {
			if f.Anonymous {
				add(f.Type)
				continue
			}
			if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag != "-" && tag != "" {
				fields[tag] = true
			}
		}
	}
	add(typ)
	for p := range schema.Properties {
		assert.True(t, fields[p], "%s.%s is described, but the type has no such field", name, p)
		delete(fields, p)
	}
	assert.Empty(t, fields, "%s: fields of the type that are not described", name)
}

// call sends a request to the running handler and holds request and answer against the
// description.
type caller struct {
	t      *testing.T
	router routers.Router
	h      http.Handler
}

func (c *caller) call(method, path, body string, header ...string) *httptest.ResponseRecorder {
	c.t.Helper()
	req := httptest.NewRequest(method, "http://warmd"+path, strings.NewReader(body))
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	rec := httptest.NewRecorder()
	c.h.ServeHTTP(rec, req.Clone(ctx))
	rt, params, err := c.router.FindRoute(req)
	require.NoError(c.t, err, "%s %s", method, path)
	answer := rec.Body.Bytes()
	contentType := rec.Header().Get("Content-Type")
	bodies := [][]byte{answer}
	if strings.HasPrefix(contentType, "application/x-ndjson") { // each line is one object of the schema
		bodies = bytes.Split(bytes.TrimSpace(answer), []byte("\n"))
	}
	for _, b := range bodies {
		in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: rt}
		out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: rec.Code, Header: rec.Header(), Body: io.NopCloser(bytes.NewReader(b))}
		require.NoError(c.t, openapi3filter.ValidateResponse(ctx, out), "%s %s answered %d: %s", method, path, rec.Code, b)
	}
	return rec
}

func TestAnswersOfARunningHandlerAreAsDescribed(t *testing.T) {
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", openapi3filter.JSONBodyDecoder)
	r := newRig(t, 2)
	doc := openAPI(t)
	doc.Servers = nil
	router, err := gorillamux.NewRouter(doc)
	require.NoError(t, err)
	c := &caller{t, router, r.handler}

	rec := c.call("POST", "/v1/placements?wait=ready", `{"model":"opt","request_id":"req-1"}`)
	require.Equal(t, 201, rec.Code, rec.Body)
	var p placement.Placement
	require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &p))
	rec = c.call("POST", "/v1/placements", `{"model":"opt"}`, "Accept", "application/x-ndjson")
	require.Equal(t, 200, rec.Code)
	require.Equal(t, 3, strings.Count(rec.Body.String(), "\n"), rec.Body)
	require.Equal(t, 200, c.call("POST", "/v1/placements?dry_run=1", `{"model":"opt"}`).Code)
	require.Equal(t, 409, c.call("POST", "/v1/placements", `{"model":"other","request_id":"req-1"}`).Code)
	require.Equal(t, 422, c.call("POST", "/v1/placements", `{"model":"opt","runtime":"sglang"}`).Code)
	require.Equal(t, 400, c.call("POST", "/v1/placements", `{"model":"opt","modell":1}`).Code)
	require.Equal(t, 400, c.call("POST", "/v1/placements?wait=never", `{"model":"opt"}`).Code)
	require.Equal(t, 400, c.call("POST", "/v1/placements", strings.Repeat("[", 100)).Code)
	for _, path := range []string{"/v1/placements", "/v1/placements?all=1", "/v1/placements/" + p.ID, "/v1/placements/" + p.ID + "/trace", "/v1/placements/" + p.ID + "/logs?tail=5",
		"/v1/traces", "/v1/workers", "/v1/capacity", "/v1/nodes", "/v1/events", "/v1/status", "/metrics", "/healthz"} {
		require.Equal(t, 200, c.call("GET", path, "").Code, path)
	}
	for _, path := range []string{"/v1/placements/p-none", "/v1/placements/p-none/trace", "/v1/placements/p-none/logs"} {
		require.Equal(t, 404, c.call("GET", path, "").Code, path)
	}
	require.Equal(t, 200, c.call("POST", "/v1/nodes/n1/drain", "").Code)
	require.Equal(t, 200, c.call("POST", "/v1/nodes/n1/undrain", "").Code)
	require.Equal(t, 404, c.call("POST", "/v1/nodes/n9/drain", "").Code)
	require.Equal(t, 200, c.call("DELETE", "/v1/placements/"+p.ID+"?grace_seconds=0", "").Code)
	require.Equal(t, 200, c.call("DELETE", "/v1/placements/"+p.ID, "").Code, "twice is once")
	require.Equal(t, 400, c.call("DELETE", "/v1/placements/"+p.ID+"?grace_seconds=x", "").Code)
	require.Equal(t, 404, c.call("DELETE", "/v1/placements/p-none", "").Code)
}
