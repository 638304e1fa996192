package trace

import (
	"encoding/hex"
	"slices"

	"warmd/agent/api/otlp"
	"warmd/placement"
)

// interrupted is why a trace failed that was open when the agent was killed, until
// somebody goes on with it.
const interrupted = "the agent ended during this start, and nobody went on with it"

// Resume goes on with the trace of a start that an earlier agent was recording when
// it ended: the same ids, so that what the engine sends finds it. It is false when
// there is no such trace.
func (r *Recorder) Resume(placementID string) (*Active, bool) {
	r.mu.Lock()
	items := slices.Clone(r.history.items)
	r.mu.Unlock()
	i := len(items) - 1
	for i >= 0 && items[i].placement != placementID {
		i--
	}
	if i < 0 || !items[i].open {
		return nil, false
	}
	t, ok := r.history.trace(items[i])
	if !ok {
		return nil, false
	}
	a := r.revive(items[i].name, t)
	if a == nil {
		return nil, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.ContainsFunc(r.open, func(o *Active) bool { return o.name == a.name }) {
		return nil, false // it goes on already
	}
	r.track(a)
	a.changed()
	return a, true
}

// revive makes an open trace of what its file says. Which process a phase was of is
// not there, so no phase of a process' birth is added any more.
func (r *Recorder) revive(name string, t placement.Trace) *Active {
	a := &Active{rec: r, head: t, begin: t.Begin, name: name, ids: map[string]bool{}}
	if !unhex(a.trace[:], t.TraceID) || !unhex(a.root[:], t.Root) || a.trace == (otlp.TraceID{}) || a.root == (otlp.SpanID{}) {
		return nil
	}
	a.head.Failed, a.head.Phases = "", nil
	a.phases = slices.Clone(t.Phases[:min(len(t.Phases), maxPhases)])
	for _, p := range a.phases {
		a.ids[p.SpanID] = true
	}
	return a
}

func unhex(to []byte, s string) bool {
	n, err := hex.DecodeString(s)
	return err == nil && copy(to, n) == len(to) && len(n) == len(to)
}
