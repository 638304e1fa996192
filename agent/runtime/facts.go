package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// fact is one word of check.py: the Python side's own opinion of an environment.
type fact struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Problem string `json:"problem"`
	Cure    string `json:"cure"`
}

// judgedHere are facts that Check finds by looking at more than check.py does.
var judgedHere = []string{"torch", "bytecode", "opentelemetry"}

// badFacts runs check.py in a runtime's own environment and returns what it thinks
// is wrong. The scripts go into a temporary folder: a check changes nothing.
func badFacts(ctx context.Context, m Manifest) ([]Finding, error) {
	tmp, err := os.MkdirTemp("", "warmd-check-")
	if err != nil {
		return nil, fmt.Errorf("run check.py: %w", err)
	}
	defer os.RemoveAll(tmp)
	scripts, err := Unpack(tmp)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var out bytes.Buffer
	c := command{argv: []string{m.Python, filepath.Join(scripts, "check.py"), "--json"}, env: m.Environ(), dir: tmp, out: &out}
	if err := c.run(ctx); err != nil {
		if _, said := errors.AsType[*exec.ExitError](err); !said { // exit code 1 is an answer
			return nil, fmt.Errorf("run check.py: %w", err)
		}
	}
	var answer struct {
		Facts []fact `json:"facts"`
	}
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		return nil, fmt.Errorf("run check.py: read answer: %w: %.300s", err, out.String())
	}
	var found []Finding
	for _, f := range answer.Facts {
		if !f.OK && !slices.Contains(judgedHere, f.Name) {
			found = append(found, Finding{Code: f.Name, Message: f.Problem, Cure: f.Cure})
		}
	}
	return found, nil
}

// parkable fails when an adopted engine cannot work, before minutes are spent on
// the rehearsal. A version that was not tried is only worth a warning.
func parkable(ctx context.Context, m Manifest, report *progress) error {
	bad, err := badFacts(ctx, m)
	if err != nil {
		return err
	}
	for _, f := range bad {
		if f.Code != "vllm" {
			return hint(fmt.Errorf("check %s: %s", m.Python, f.Message), "%s", f.Cure)
		}
		report.warn("inspect", "%s; %s", f.Message, f.Cure)
	}
	return nil
}
