// Package gossiptest is a network in memory for tests of gossip: packets can be
// lost, delayed and cut off in one direction or both, streams can be refused, and
// nothing ever blocks a sender. Inside a testing/synctest bubble a fleet lives
// through hours in milliseconds.
//
// The library's own mock network sends packets over unbuffered channels: two nodes
// that ping each other wait for each other for ever.
package gossiptest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Port is the port of every Transport.
const Port = 7946

// inbox bounds what a node has not read yet; more is dropped, as a kernel does.
const inbox = 1024

// Network connects Transports. The zero fault is none: no loss, no delay.
type Network struct {
	mu      sync.Mutex
	random  *rand.Rand
	nodes   map[string]*Transport // by host:port
	addrs   map[string]string     // by name, kept for a node that comes back
	given   int                   // addresses so far
	drop    float64
	delay   time.Duration
	cut     map[[2]string]bool // from, to (names)
	packets int
	bytes   int
}

// NewNetwork makes a network whose losses are a function of seed.
func NewNetwork(seed uint64) *Network {
	return &Network{
		random: rand.New(rand.NewPCG(seed, 0)), nodes: map[string]*Transport{}, addrs: map[string]string{}, cut: map[[2]string]bool{},
	}
}

// Transport plugs a node in. A name that was there before gets its address again,
// and what was left of it is unplugged.
func (n *Network) Transport(name string) *Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	addr, known := n.addrs[name]
	if !known {
		n.given++
		addr = fmt.Sprintf("10.0.%d.%d:%d", n.given/250, n.given%250+1, Port)
		n.addrs[name] = addr
	}
	t := &Transport{
		net: n, name: name, addr: addr, packets: make(chan *memberlist.Packet, inbox), streams: make(chan net.Conn, inbox),
	}
	n.nodes[addr] = t
	return t
}

// Readdress gives a node another address when it is plugged in next.
func (n *Network) Readdress(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.addrs, name)
}

// Addr is the address of a node that was plugged in.
func (n *Network) Addr(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addrs[name]
}

// SetLoss loses packets with probability p. Streams do not lose: TCP resends.
func (n *Network) SetLoss(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = p
}

// SetDelay delays each packet by up to d, so packets overtake each other, and each
// dial by d.
func (n *Network) SetDelay(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = d
}

// Cut stops everything from each of from to each of to, in that direction only;
// streams need both directions.
func (n *Network) Cut(from, to []string) { n.setCut(from, to, true) }

// Partition cuts both directions.
func (n *Network) Partition(a, b []string) { n.setCut(a, b, true); n.setCut(b, a, true) }

// Unplug cuts a node off from all others that are there now: a crash, as they see it.
func (n *Network) Unplug(name string) {
	n.Partition([]string{name}, n.Names())
}

// Plug undoes the cuts of one node.
func (n *Network) Plug(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for k := range n.cut {
		if k[0] == name || k[1] == name {
			delete(n.cut, k)
		}
	}
}

// Heal undoes all cuts.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// Names lists every node that was ever plugged in, in no order.
func (n *Network) Names() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]string, 0, len(n.addrs))
	for name := range n.addrs {
		out = append(out, name)
	}
	return out
}

// Traffic counts the packets sent so far, and their bytes.
func (n *Network) Traffic() (packets, bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.packets, n.bytes
}

func (n *Network) setCut(from, to []string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range from {
		for _, b := range to {
			if a != b {
				n.cut[[2]string{a, b}] = cut
			}
		}
	}
}

// Transport is one node's plug; it implements memberlist.Transport.
type Transport struct {
	net        *Network
	name, addr string
	packets    chan *memberlist.Packet
	streams    chan net.Conn

	mu   sync.Mutex
	down bool
}

var _ memberlist.Transport = (*Transport)(nil)

// FinalAdvertiseAddr is the address the network gave.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	host, _, err := net.SplitHostPort(t.addr)
	return net.ParseIP(host).To4(), Port, err
}

// WriteTo sends a packet, or loses it; it never blocks and never says which.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	n, now := t.net, time.Now()
	n.mu.Lock()
	n.packets, n.bytes = n.packets+1, n.bytes+len(b)
	to := n.nodes[addr]
	lost := to == nil || n.cut[[2]string{t.name, to.name}] || n.random.Float64() < n.drop
	var delay time.Duration
	if n.delay > 0 {
		delay = time.Duration(n.random.Int64N(int64(n.delay)))
	}
	n.mu.Unlock()
	if lost || t.isDown() {
		return now, nil
	}
	from, _ := net.ResolveUDPAddr("udp", t.addr)
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: from}
	deliver := func() {
		p.Timestamp = time.Now()
		to.mu.Lock()
		defer to.mu.Unlock()
		if to.down {
			return
		}
		select {
		case to.packets <- p:
		default:
		}
	}
	if delay == 0 {
		deliver()
	} else {
		time.AfterFunc(delay, deliver)
	}
	return now, nil
}

// PacketCh is what arrived.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh is who called.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

var errTimeout = errors.New("i/o timeout")

// DialTimeout opens a stream. Across a cut it takes the whole timeout to fail; to
// a node that is down it is refused at once.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	n := t.net
	n.mu.Lock()
	to, delay := n.nodes[addr], n.delay
	cut := to == nil || n.cut[[2]string{t.name, to.name}] || n.cut[[2]string{to.name, t.name}]
	n.mu.Unlock()
	if cut {
		time.Sleep(timeout)
		return nil, fmt.Errorf("dial %s: %w", addr, errTimeout)
	}
	time.Sleep(delay)
	to.mu.Lock()
	defer to.mu.Unlock()
	if to.down || len(to.streams) == cap(to.streams) {
		return nil, fmt.Errorf("dial %s: connection refused", addr)
	}
	here, there := net.Pipe()
	to.streams <- there
	return here, nil
}

// Shutdown takes the node off the network; callers that nobody answered hang up.
func (t *Transport) Shutdown() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down {
		return nil
	}
	t.down = true
	for {
		select {
		case c := <-t.streams:
			_ = c.Close()
		default:
			return nil
		}
	}
}

func (t *Transport) isDown() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.down
}
