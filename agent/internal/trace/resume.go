package trace

import (
	"encoding/hex"
	"slices"

	"warmd/agent/api/otlp"
)

// interrupted is why a trace failed that was open when the agent was killed, until
// somebody goes on with it.
const interrupted = "the agent ended during this start, and nobody went on with it"

// Resume goes on with the trace of a start that an earlier agent was recording when
// it ended: the same ids, so that what the engine sends finds it. It is false when
// there is no such trace.
func (r *Recorder) Resume(placementID string) (*Active, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, it := range slices.Backward(r.history.items) {
		if it.trace.Placement != placementID {
			continue
		}
		if it.trace.Failed != interrupted {
			return nil, false
		}
		a := r.revive(it)
		if a == nil {
			return nil, false
		}
		r.track(a)
		a.changed()
		return a, true
	}
	return nil, false
}

// revive makes an open trace of what its file says. Which process a phase was of is
// not there, so no phase of a process' birth is added any more.
func (r *Recorder) revive(it item) *Active {
	a := &Active{rec: r, head: it.trace, begin: it.trace.Begin, name: it.name, ids: map[string]bool{}}
	if !unhex(a.trace[:], it.trace.TraceID) || !unhex(a.root[:], it.trace.Root) || a.trace == (otlp.TraceID{}) || a.root == (otlp.SpanID{}) {
		return nil
	}
	a.head.Failed, a.head.Phases = "", nil
	a.phases = slices.Clone(it.trace.Phases[:min(len(it.trace.Phases), maxPhases)])
	for _, p := range a.phases {
		a.ids[p.SpanID] = true
	}
	return a
}

func unhex(to []byte, s string) bool {
	n, err := hex.DecodeString(s)
	return err == nil && copy(to, n) == len(to) && len(n) == len(to)
}
