package load

import (
	"fmt"
	"slices"

	"warmd/placement"
)

// Books are what is known after a load, from those who ought to know.
type Books struct {
	// Told is what the clients know.
	Told []*Told
	// Records are those in etcd, whoever wrote them.
	Records []placement.Placement
	// Held is what each node's agent says it holds.
	Held map[string][]placement.Placement
	// Engines are the processes that really run: the served name of each, by node.
	Engines map[string][]string
}

// Verdict is what a proof found. Every entry is a sentence.
type Verdict struct {
	Lost, Doubled, Wrong []string
}

// OK says that nothing was found.
func (v Verdict) OK() bool { return len(v.Lost)+len(v.Doubled)+len(v.Wrong) == 0 }

// Proof compares the books, once everything has come to rest. Every request was
// either answered and is exactly once everywhere, or ended and is nowhere.
func Proof(b Books) (v Verdict) {
	byRequest := map[string][]placement.Placement{}
	for _, r := range b.Records {
		byRequest[r.Request.ID] = append(byRequest[r.Request.ID], r)
	}
	running := map[string][]string{} // nodes by served name
	for node, names := range b.Engines {
		for _, n := range names {
			running[n] = append(running[n], node)
		}
	}
	for _, told := range b.Told {
		b.one(&v, told, byRequest[told.Request], running[told.Request])
		delete(running, told.Request)
	}
	for name, nodes := range running {
		v.Wrong = append(v.Wrong, fmt.Sprintf("engine %s runs on %v and nobody asked for it", name, nodes))
	}
	return v
}

func (b Books) one(v *Verdict, told *Told, records []placement.Placement, nodes []string) {
	lost := func(format string, args ...any) {
		v.Lost = append(v.Lost, told.Request+": "+fmt.Sprintf(format, args...))
	}
	doubled := func(format string, args ...any) {
		v.Doubled = append(v.Doubled, told.Request+": "+fmt.Sprintf(format, args...))
	}
	if len(records) > 1 {
		doubled("%d records", len(records))
		return
	}
	if len(nodes) > 1 {
		doubled("engines on %v", nodes)
		return
	}
	if len(records) == 0 {
		if told.ID != "" {
			lost("the client was told %s, there is no record", told.ID)
		}
		if len(nodes) > 0 {
			v.Wrong = append(v.Wrong, fmt.Sprintf("%s: an engine runs on %v without a record", told.Request, nodes))
		}
		if told.ID == "" && told.Err != nil {
			lost("it was never placed: %v", told.Err)
		}
		return
	}
	r := records[0]
	switch {
	case told.ID != "" && r.ID != told.ID:
		doubled("the client was told %s (ready %t, error %v), the record is %s, %s", told.ID, told.Ready, told.Err, r.ID, r.State)
	case told.Ready && told.Err != nil:
		lost("its release failed: %v", told.Err)
	case told.Released && r.State != placement.Released:
		lost("released, but the record is %s", r.State)
	case told.Ready && !told.Released && r.State != placement.Ready:
		lost("ready, but the record is %s: %s", r.State, r.Reason)
	case !told.Ready && r.State == placement.Failed:
		lost("failed: %s", r.Reason)
	case !told.Ready && told.Err != nil:
		lost("the client gave up in state %s: %v", r.State, told.Err)
	case r.State == placement.Assigned || r.State == placement.Loading || r.State == placement.Pending:
		lost("it came to rest as %s", r.State)
	}
	holds := slices.ContainsFunc(b.Held[r.Node], func(p placement.Placement) bool { return p.ID == r.ID && p.State == placement.Ready })
	switch {
	case r.State == placement.Ready && len(nodes) == 0:
		lost("ready on %s, but no engine runs", r.Node)
	case r.State == placement.Ready && nodes[0] != r.Node:
		doubled("ready on %s, but the engine runs on %s", r.Node, nodes[0])
	case r.State == placement.Ready && !holds:
		lost("ready on %s, but its agent does not hold it", r.Node)
	case r.State.Terminal() && len(nodes) > 0:
		v.Wrong = append(v.Wrong, fmt.Sprintf("%s: %s, but an engine runs on %v", told.Request, r.State, nodes))
	}
}
