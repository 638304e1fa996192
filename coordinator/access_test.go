package coordinator

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/agent/api/access"
)

func TestEveryRouteHasARuleAndEveryRuleARoute(t *testing.T) {
	var routes []string
	for _, rt := range (&Coordinator{}).table() {
		routes = append(routes, rt.method+" "+rt.path)
	}
	slices.Sort(routes)
	require.Equal(t, routes, slices.Sorted(maps.Keys(access.Coordinator.Need)))
}
