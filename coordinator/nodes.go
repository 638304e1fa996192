package coordinator

import (
	"context"
	"fmt"
	"time"

	"warmd/placement"
)

// nodesEvery is how often the view is compared with what it was. Not with every change:
// in a big fleet somebody has something to say all the time.
const nodesEvery = time.Second

// watchNodes tells people which nodes come and go, and wakes the sweeper for them.
func (c *Coordinator) watchNodes(ctx context.Context) error {
	tick := time.NewTicker(nodesEvery)
	defer tick.Stop()
	var w nodeWatch
	for {
		for _, e := range w.look(c.world.Fleet()) {
			c.log.Info(e.Kind, "node", e.Node, "what", e.Message)
			c.events.add(e)
			c.sweeper.NodeChanged()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// nodeWatch remembers which nodes were there. One that a call did not reach a moment
// ago (suspect) is neither here nor gone.
type nodeWatch struct {
	there map[string]bool // nil before the first look
}

// look returns what has changed since the last look; the first one only remembers.
func (w *nodeWatch) look(f placement.Fleet) (news []placement.Event) {
	first := w.there == nil
	now := make(map[string]bool, len(f.Nodes))
	tell := func(n placement.NodeView, kind, format string, args ...any) {
		if !first {
			news = append(news, placement.Event{At: f.At, Node: n.Node, Kind: "node." + kind, Message: fmt.Sprintf(format, args...)})
		}
	}
	for _, n := range f.Nodes {
		was, known := w.there[n.Node]
		switch {
		case n.Alive && !known:
			tell(n, "joined", "%s, agent %s at %s", plural(len(n.Devices), "device"), n.Version, n.Addr)
		case n.Alive && !was:
			tell(n, "returned", "it is heard of again: what it holds is compared with the records")
		case n.Alive || !known || !was:
		case n.Status == "left":
			tell(n, "left", "its agent has said goodbye; its engines go on")
		case n.Status == "failed":
			tell(n, "lost", "no word from it for %.0f s: nothing new is placed there, what runs there may well go on", n.AgeSeconds)
		}
		switch {
		case n.Status == "suspect" && known:
			now[n.Node] = was
		default:
			now[n.Node] = n.Alive
		}
	}
	w.there = now
	return news
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
