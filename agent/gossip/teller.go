package gossip

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/memberlist"

	"warmd/placement"
)

// teller sends this node's exact capacity to every coordinator: soon after a
// change, when a coordinator appears, and every 15 s, because a message may be
// lost. Always the whole state: there is nothing to resume.
func (m *Member) teller(ctx context.Context, post *post) {
	var told placement.Capacity
	timer := time.NewTimer(coalesce)
	defer timer.Stop()
	due := time.Now().Add(coalesce)
	sooner := func(d time.Duration) {
		if at := time.Now().Add(d); at.Before(due) {
			due = at
			timer.Reset(d)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.untold:
			// A coordinator waits for the generation that covers its claim, even when
			// nothing else is new: every generation is told, a drift of memory later.
			switch now := m.latest(); {
			case news(told, now):
				sooner(coalesce)
			case told.Generation != now.Generation:
				sooner(drift)
			}
		case <-m.newCoordinator:
			// All nodes see it in the same second: spread over 0.2 ms a node.
			sooner(coalesce + rand.N(time.Duration(m.list.NumMembers())*200*time.Microsecond+1))
		case <-timer.C:
			told = m.latest()
			m.tell(told, post)
			d := jitter(repeat)
			due = time.Now().Add(d)
			timer.Reset(d)
		}
	}
}

// tell sends one word: small ones as a packet that may be lost, larger ones by the
// post, so that a coordinator that hangs holds up nobody else.
func (m *Member) tell(c placement.Capacity, post *post) {
	to := m.coordinators()
	if len(to) == 0 || len(c.Devices) == 0 {
		return
	}
	msg, err := placement.EncodeCapacity(c)
	if err != nil {
		m.log.Error("tell coordinators: they keep the summary", "err", err)
		return
	}
	for _, p := range to {
		if len(msg) > packetRoom(m.cfg.Label) {
			post.put(p, msg)
			continue
		}
		if err := m.list.SendBestEffort(p.node(), msg); err != nil {
			m.log.Debug("tell coordinator", "coordinator", p.name, "err", err)
		}
	}
}

// send delivers one letter of the post.
func (m *Member) send(p peer, msg []byte) {
	if err := m.list.SendReliable(p.node(), msg); err != nil {
		m.log.Debug("tell coordinator", "coordinator", p.name, "err", err)
	}
}

// packetRoom is what a message may have inside one packet of 1400 bytes: minus the
// type, the checksum, the encryption and the label.
func packetRoom(label string) int {
	return memberlist.DefaultLANConfig().UDPBufferSize - 1 - 5 - 32 - 2 - len(label)
}
