package gossip

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"warmd/placement"
)

// publisher tells the fleet about changes. It is the only caller of UpdateNode,
// which blocks until the broadcast is out: never call it from a loop that matters.
//
// Gossip carries a handful of distinct updates a second for the whole fleet, so a
// change goes out only if somebody could place differently because of it, at most
// once in max(1 s, N/20 s) per node; the rest waits for the heartbeat.
func (m *Member) publisher(ctx context.Context, told placement.Capacity) {
	for m.awaitNews(ctx, told) {
		told = m.latest()
		m.announce(told)
		if err := m.list.UpdateNode(updateTimeout); err != nil {
			m.log.Debug("publish capacity: peers will hear it later", "err", err)
		}
		if !sleep(ctx, m.paced(updateEvery, fleetUpdates)) {
			return
		}
	}
}

// awaitNews blocks until there is something worth a broadcast; false when ctx ends.
func (m *Member) awaitNews(ctx context.Context, told placement.Capacity) bool {
	beat := time.NewTimer(jitter(m.paced(heartbeat, heartbeats)))
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-m.dirty:
			if news(told, m.latest()) {
				return true
			}
		case <-beat.C:
			if now := m.latest(); now.Generation != told.Generation {
				return true
			}
			beat.Reset(jitter(m.paced(heartbeat, heartbeats)))
		}
	}
}

// announce sets what NodeMeta and AckPayload answer.
func (m *Member) announce(c placement.Capacity) {
	m.published.Store(&summary{meta: placement.EncodeMeta(c), epoch: c.Epoch, generation: c.Generation})
}

// paced is d, or as long as a fleet of this size needs to stay below perSecond.
func (m *Member) paced(d time.Duration, perSecond int) time.Duration {
	return max(d, time.Duration(m.list.NumMembers())*time.Second/time.Duration(perSecond))
}

// news reports whether b says anything that matters over a. Free memory drifts
// all the time on a host: only an eighth of a device is news.
func news(a, b placement.Capacity) bool {
	if a.Epoch != b.Epoch || a.Addr != b.Addr || a.Draining != b.Draining || a.Version != b.Version ||
		!slices.Equal(a.Runtimes, b.Runtimes) || len(a.Devices) != len(b.Devices) {
		return true
	}
	for i, x := range a.Devices {
		y := b.Devices[i]
		if x.ID != y.ID || x.Kind != y.Kind || x.Slots != y.Slots || x.Free != y.Free || x.Busy != y.Busy ||
			x.Quarantined != y.Quarantined || x.Problem != y.Problem || x.TotalBytes != y.TotalBytes ||
			!maps.Equal(x.Warm, y.Warm) || !slices.Equal(x.Placements, y.Placements) {
			return true
		}
		if drift := x.FreeBytes - y.FreeBytes; max(drift, -drift) > x.TotalBytes/8 {
			return true
		}
	}
	return false
}

// jitter is d +-20 %, so that a fleet does not act in step.
func jitter(d time.Duration) time.Duration {
	return d*4/5 + rand.N(d*2/5+1)
}

// sleep waits for d; false when ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
