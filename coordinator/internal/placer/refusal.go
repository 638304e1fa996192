package placer

import (
	"fmt"
	"slices"
	"strings"

	"warmd/placement"
)

// closeness orders refusals by how near the node was to taking the request: the
// nearest one gives the code of the answer.
var closeness = []placement.Code{
	placement.CodeNoCapacity, placement.CodeNoWarm, placement.CodeDraining,
	placement.CodeUnknownRuntime, placement.CodeUnavailable, placement.CodeNotFound,
}

var hints = map[placement.Code]string{
	placement.CodeNoCapacity:     "release something, add a node, or wait for a slot with --wait-capacity",
	placement.CodeNoWarm:         "wait until a worker is warm (warmctl workers), or take --start auto",
	placement.CodeDraining:       "warmctl undrain NODE lets it take placements again",
	placement.CodeUnknownRuntime: "warmctl nodes lists the runtimes; name one with --runtime, or add it on a node with warmd runtime add",
	placement.CodeUnavailable:    "check the agents: systemctl status warmd-agent",
	placement.CodeNotFound:       "warmctl nodes lists the names",
}

// maxReasons bounds how many nodes an answer explains.
const maxReasons = 5

// refusal says why no node took the request: what the last one that was asked said,
// or else what the view says about each.
func (s *start) refusal(nodes []placement.NodeView, d placement.Decision) *placement.Error {
	if s.last != nil {
		return s.last
	}
	if len(nodes) == 0 {
		return placement.Errorf(placement.CodeNoCapacity, "the fleet has no node").
			WithHint("start an agent that joins this coordinator; warmctl nodes shows who is here")
	}
	if s.req.Node != "" && !slices.ContainsFunc(nodes, func(n placement.NodeView) bool { return n.Node == s.req.Node }) {
		return placement.Errorf(placement.CodeNotFound, "no node is named %q", s.req.Node).WithHint("%s", hints[placement.CodeNotFound])
	}
	var nearest *placement.Passed
	var reasons []string
	for i := range d.Passed {
		n := &d.Passed[i]
		if s.req.Node != "" && n.Node != s.req.Node {
			continue
		}
		if nearest == nil || slices.Index(closeness, n.Code) < slices.Index(closeness, nearest.Code) {
			nearest = n
		}
		if len(reasons) < maxReasons {
			reasons = append(reasons, n.Node+": "+n.Reason)
		}
	}
	if nearest == nil {
		return placement.Errorf(placement.CodeNoCapacity, "every node that would do has refused").WithHint("%s", hints[placement.CodeNoCapacity])
	}
	if more := len(d.Passed) - len(reasons); more > 0 && s.req.Node == "" {
		reasons = append(reasons, fmt.Sprintf("and %d more", more))
	}
	e := placement.Errorf(nearest.Code, "no node can take %s: %s", s.req.Name, strings.Join(reasons, "; ")).WithHint("%s", hints[nearest.Code])
	for i := range nodes {
		if nodes[i].Node == nearest.Node && nearest.Code == placement.CodeNoCapacity {
			c := nodes[i].Capacity
			e.Capacity = &c
		}
	}
	return e
}

// conflict refuses a request id that names something else.
func conflict(requestID, id string, other placement.Request) *placement.Error {
	return placement.Errorf(placement.CodeConflict, "request id %s already names placement %s of model %s, which was asked for differently", requestID, id, other.Model).
		WithHint("repeat a request unchanged, or give a new one a request id of its own")
}
