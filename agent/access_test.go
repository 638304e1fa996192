package agent

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/agent/api/access"
)

func TestEveryRouteHasARuleAndEveryRuleARoute(t *testing.T) {
	require.Equal(t, slices.Sorted(maps.Keys((&Agent{metrics: &metrics{}}).routes())), slices.Sorted(maps.Keys(access.Agent.Need)))
}
