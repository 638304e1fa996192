package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// newPulse makes the ears of the loops that must turn. What asks etcd is not among
// them: a coordinator whose etcd is away is as well as one can be, and a restart would
// lose what it remembers.
func newPulse() map[string]chan chan struct{} {
	return map[string]chan chan struct{}{"view": make(chan chan struct{}), "records": make(chan chan struct{})}
}

// loopTime is what a loop gets to answer.
const loopTime = 2 * time.Second

// Alive returns nil when the loops of this coordinator turn. The one behind the view
// takes the placer's lock at every turn, so a placer that stands still is seen, too.
func (c *Coordinator) Alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loopTime)
	defer cancel()
	var all error
	for name, loop := range c.pulse {
		answer := make(chan struct{})
		select {
		case loop <- answer:
			<-answer
		case <-ctx.Done():
			all = errors.Join(all, fmt.Errorf("the loop of %s does not answer: %w", name, ctx.Err()))
		}
	}
	return all
}

// Status is this coordinator in one line, for `systemctl status`.
func (c *Coordinator) Status() string {
	alive, nodes := 0, c.opt.View.Fleet().Nodes
	for _, n := range nodes {
		if n.Alive {
			alive++
		}
	}
	queued, flights := c.placer.Counts()
	etcd, _ := c.world.health.state()
	return fmt.Sprintf("%d of %d nodes alive, %d placing, %d of them queued; etcd %s", alive, len(nodes), flights, queued, etcd)
}
