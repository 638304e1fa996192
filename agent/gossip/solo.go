package gossip

import (
	"context"

	"warmd/placement"
)

// Solo is a fleet of one without a network: the same methods as [Member], for
// `warmd dev` with one node.
type Solo struct {
	*View
	name string
}

// NewSolo makes the fleet whose only node is called name.
func NewSolo(name string) *Solo { return &Solo{NewView(name), name} }

// SetCapacity says what the node has now.
func (s *Solo) SetCapacity(c placement.Capacity) {
	c = clone(c)
	c.Node, c.Summary = s.name, false
	s.setSelf(c)
}

// Run waits for the end of ctx: there is nothing else to do.
func (s *Solo) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
