package coordinator

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"warmd/placement"
)

func TestNodesThatComeAndGoAreToldOnce(t *testing.T) {
	var w nodeWatch
	see := func(nodes ...string) (kinds []string) { // name, status, name, status ...
		var f placement.Fleet
		for i := 0; i < len(nodes); i += 2 {
			f.Nodes = append(f.Nodes, placement.NodeView{Capacity: placement.Capacity{Node: nodes[i]}, Status: nodes[i+1], Alive: nodes[i+1] == "alive", AgeSeconds: 9})
		}
		for _, e := range w.look(f) {
			kinds = append(kinds, e.Kind+" "+e.Node)
			assert.NotEmpty(t, e.Message)
		}
		return kinds
	}
	assert.Empty(t, see("n1", "alive", "n2", "failed"), "what was so before this coordinator began is no news")
	assert.Empty(t, see("n1", "alive", "n2", "failed"))
	assert.Equal(t, []string{"node.returned n2", "node.joined n3"}, see("n1", "alive", "n2", "alive", "n3", "alive"))
	assert.Empty(t, see("n1", "suspect", "n2", "alive", "n3", "alive"), "one call that failed says nothing")
	assert.Equal(t, []string{"node.lost n1", "node.left n3"}, see("n1", "failed", "n2", "alive", "n3", "left"))
	assert.Empty(t, see("n1", "failed", "n2", "suspect"))
	assert.Empty(t, see("n1", "failed", "n2", "alive"))
	assert.Equal(t, []string{"node.returned n1"}, see("n1", "alive", "n2", "alive"))
}
