package gossip

import (
	"encoding/binary"
	"net"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"

	"warmd/placement"
)

// peer is where a member listens, copied out of memberlist: its own Node structs
// change under its own lock.
type peer struct {
	name string
	ip   string
	port uint16
	vsn  [6]uint8
}

func peerOf(n *memberlist.Node) peer {
	return peer{n.Name, n.Addr.String(), n.Port, [6]uint8{n.PMin, n.PMax, n.PCur, n.DMin, n.DMax, n.DCur}}
}

func (p peer) addr() string { return net.JoinHostPort(p.ip, strconv.Itoa(int(p.port))) }

func (p peer) node() *memberlist.Node {
	v := p.vsn
	return &memberlist.Node{
		Name: p.name, Addr: net.ParseIP(p.ip), Port: p.port,
		PMin: v[0], PMax: v[1], PCur: v[2], DMin: v[3], DMax: v[4], DCur: v[5],
	}
}

// delegate is what memberlist calls, with its own lock held: so it copies into
// the View and calls nothing of memberlist.
type delegate struct{ m *Member }

var (
	_ memberlist.Delegate         = (*delegate)(nil)
	_ memberlist.EventDelegate    = (*delegate)(nil)
	_ memberlist.PingDelegate     = (*delegate)(nil)
	_ memberlist.ConflictDelegate = (*delegate)(nil)
)

// NodeMeta is the summary. Longer than limit would make memberlist panic: then
// better say nothing.
func (d *delegate) NodeMeta(limit int) []byte {
	if s := d.m.published.Load(); s != nil && len(s.meta) <= limit {
		return s.meta
	}
	return nil
}

// farewell, with the name behind it, is the other message that goes straight to a
// member: memberlist does not tell its delegate whether a node left or failed.
const farewell = 0xff

// NotifyMsg is an exact capacity, straight from its node, or its farewell. The
// buffer is memberlist's: decoding copies. It is bounded, so it may be done here.
func (d *delegate) NotifyMsg(b []byte) {
	if len(b) > 0 && b[0] == farewell {
		d.m.memberDown(string(b[1:]), StatusLeft)
		return
	}
	c, err := placement.DecodeCapacity(b)
	if err != nil {
		d.strangeWord("a message", err)
		return
	}
	d.m.hear(c)
}

// strangeWord says that something could not be read, at most once a minute: in a
// mixed fleet every node sends some all the time.
func (d *delegate) strangeWord(what string, err error) {
	now, last := time.Now().Unix(), d.m.warned.Load()
	if now-last >= 60 && d.m.warned.CompareAndSwap(last, now) {
		d.m.log.Warn("drop "+what+": does a member run another version?", "err", err)
	}
}

// Nothing is broadcast and nothing rides on push/pull: both grow with the fleet.

func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d *delegate) LocalState(bool) []byte          { return nil }
func (d *delegate) MergeRemoteState([]byte, bool)   {}

func (d *delegate) NotifyJoin(n *memberlist.Node)   { d.up(n) }
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.up(n) }

func (d *delegate) up(n *memberlist.Node) {
	c, err := placement.DecodeMeta(n.Meta)
	if err != nil {
		d.strangeWord("the summary of "+n.Name, err)
	}
	c.Node = n.Name
	d.m.memberUp(peerOf(n), c, err == nil)
}

func (d *delegate) NotifyLeave(n *memberlist.Node) { d.m.memberDown(n.Name, StatusFailed) }

// AckPayload rides on the answer to a probe: what was published last stands.
func (d *delegate) AckPayload() []byte {
	s := d.m.published.Load()
	if s == nil {
		return nil
	}
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(s.epoch)), s.generation)
}

// NotifyPingComplete is the other end of AckPayload.
func (d *delegate) NotifyPingComplete(n *memberlist.Node, _ time.Duration, payload []byte) {
	if len(payload) == 16 {
		d.m.confirm(n.Name, int64(binary.BigEndian.Uint64(payload)), binary.BigEndian.Uint64(payload[8:]))
	}
}

// NotifyConflict is two hosts with one name: memberlist keeps the first.
func (d *delegate) NotifyConflict(have, other *memberlist.Node) {
	d.m.log.Error("two hosts have the same node name: rename one (node name in its configuration)",
		"name", have.Name, "kept", have.Address(), "refused", other.Address())
}
