package placement

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

func TestValidateNamesTheBadField(t *testing.T) {
	long := strings.Repeat("x", MaxText+1)
	many := map[string]string{}
	for i := range MaxEnv + 1 {
		many["K"+strings.Repeat("x", i)] = ""
	}
	for _, c := range []struct {
		field string
		r     Request
	}{
		{"model", Request{}},
		{"model", Request{Model: long}},
		{"model", Request{Model: "a\nb"}},
		{"model", Request{Model: "--help"}},
		{"name", Request{Model: "m", Name: "a b"}},
		{"name", Request{Model: "m", Name: strings.Repeat("a", MaxNameText+1)}},
		{"runtime", Request{Model: "m", Runtime: "../etc"}},
		{"node", Request{Model: "m", Node: " "}},
		{"request_id", Request{Model: "m", ID: strings.Repeat("a", 129)}},
		{"start", Request{Model: "m", Start: "hot"}},
		{"memory_bytes", Request{Model: "m", MemoryBytes: -1}},
		{"timeout_seconds", Request{Model: "m", TimeoutSeconds: -1}},
		{"timeout_seconds", Request{Model: "m", TimeoutSeconds: math.NaN()}},
		{"timeout_seconds", Request{Model: "m", TimeoutSeconds: math.Inf(1)}},
		{"args", Request{Model: "m", Args: make([]string, MaxArgs+1)}},
		{"args[1]", Request{Model: "m", Args: []string{"--a", "b\x00"}}},
		{"env", Request{Model: "m", Env: many}},
		{"env", Request{Model: "m", Env: map[string]string{"A B": ""}}},
		{"env.A", Request{Model: "m", Env: map[string]string{"A": long}}},
		{"traceparent", Request{Model: "m", Traceparent: long}},
	} {
		err := c.r.Validate()
		var bad *FieldError
		if assert.ErrorAs(t, err, &bad, "%s", c.field) {
			assert.Equal(t, c.field, bad.Field)
			assert.Less(t, len(err.Error()), 400, "an error is for reading: %s", c.field)
		}
	}
}

func TestOrdinaryRequestsAreValid(t *testing.T) {
	for _, r := range []Request{
		{Model: "opt-125m"},
		{Model: "/models/opt-125m/", Name: "facebook/opt:125m", Runtime: "vllm-0.32", Node: "gpu1.example.com", Start: StartWarm},
		{Model: "m", ID: "0190-abc", Args: []string{"--max-model-len=512", ""}, Env: map[string]string{"VLLM_X": "1", "_": ""}, TimeoutSeconds: 86400, MemoryBytes: 1},
	} {
		assert.NoError(t, r.Validate())
	}
}

func TestServedNameIsTheLastElement(t *testing.T) {
	for model, want := range map[string]string{"opt": "opt", "/models/opt": "opt", "/models/opt///": "opt", "/": "", "a/b/c": "c"} {
		assert.Equal(t, want, Request{Model: model}.ServedName(), model)
	}
	assert.Equal(t, "n", Request{Model: "m", Name: "n"}.ServedName())
}

func TestTimeoutHasADefault(t *testing.T) {
	assert.Equal(t, DefaultTimeout, Request{}.Timeout())
	assert.Equal(t, 1500*time.Millisecond, Request{TimeoutSeconds: 1.5}.Timeout())
}

func drawAnyRequest(t *rapid.T) Request {
	few := rapid.SampledFrom([]string{"", "a", "b"})
	r := Request{
		ID: few.Draw(t, "id"), Model: rapid.SampledFrom([]string{"a", "x/a", "b"}).Draw(t, "model"), Name: few.Draw(t, "name"), Runtime: few.Draw(t, "runtime"),
		Node: few.Draw(t, "node"), Start: rapid.SampledFrom([]Start{"", StartAuto, StartWarm}).Draw(t, "start"),
		Args: rapid.SliceOfN(few, 0, 2).Draw(t, "args"), Env: rapid.MapOfN(few, few, 0, 2).Draw(t, "env"),
		MemoryBytes: rapid.Int64Range(0, 1).Draw(t, "memory"), Traceparent: few.Draw(t, "trace"),
	}
	return r
}

func TestNormalizeTwiceIsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawAnyRequest(t)
		if !r.Normalize().Same(r.Normalize().Normalize()) {
			t.Fatalf("%+v", r)
		}
	})
}

func TestSameIsAnEquivalence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawAnyRequest(t).Normalize(), drawAnyRequest(t).Normalize()
		if !a.Same(a) || a.Same(b) != b.Same(a) {
			t.Fatalf("%+v and %+v", a, b)
		}
		retry := a
		retry.ID, retry.Traceparent = "other", "other"
		if !a.Same(retry) {
			t.Fatal("the id and the trace must not matter")
		}
	})
}

func TestEveryFieldThatMattersBreaksSameness(t *testing.T) {
	base := Request{Model: "m", Args: []string{"a"}, Env: map[string]string{"k": "v"}}.Normalize()
	for name, change := range map[string]func(*Request){
		"model":     func(r *Request) { r.Model = "n" },
		"name":      func(r *Request) { r.Name = "n" },
		"runtime":   func(r *Request) { r.Runtime = "n" },
		"node":      func(r *Request) { r.Node = "n" },
		"start":     func(r *Request) { r.Start = StartCold },
		"memory":    func(r *Request) { r.MemoryBytes = 1 },
		"args":      func(r *Request) { r.Args = []string{"b"} },
		"more args": func(r *Request) { r.Args = []string{"a", "b"} },
		"env":       func(r *Request) { r.Env = map[string]string{"k": "w"} },
		"env key":   func(r *Request) { r.Env = map[string]string{"l": "v"} },
	} {
		other := base
		change(&other)
		assert.False(t, base.Same(other), name)
	}
}
