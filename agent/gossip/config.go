package gossip

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"

	"warmd/placement"
)

// DefaultPort is the gossip port, UDP and TCP.
const DefaultPort = 7946

// Timings of the fleet. They are constants: members of one fleet must agree, and
// every figure follows from what gossip can carry (see the formulas).
const (
	updateEvery   = time.Second           // at least between two summaries of one node
	fleetUpdates  = 20                    // summaries a second that a whole fleet may send: so N/20 s between two of one node
	heartbeat     = time.Minute           // small drifts (free bytes) are published this late, or N/5 s
	heartbeats    = 5                     // of the fleet a second
	updateTimeout = time.Second           // UpdateNode waits this long for its broadcast; it stays queued
	coalesce      = 50 * time.Millisecond // a change reaches coordinators this late
	drift         = time.Second           // or this late when it is nothing to place by
	repeat        = 15 * time.Second      // and again this often, +-20 %
	tcpTimeout    = 5 * time.Second       // a dial, and the whole exchange behind it
	leaveTimeout  = 3 * time.Second
	reclaimAfter  = 30 * time.Second // a dead node's name may come back at another address
	healEvery     = 3 * time.Second  // +-20 %, or N/100 s: a node that is back is heard of within seconds
	fleetHeals    = 100              // calls across a second that a whole fleet may make
	smallFleet    = 60               // members; up to here each of them calls whom it misses
	dialTimeout   = 2 * time.Second  // of a stream: SYN, and again after a second
)

// Config says who this member is and whom it looks for.
type Config struct {
	// Name is the node's name, unique in the fleet. A coordinator that runs beside an
	// agent needs a name of its own.
	Name string
	// BindAddr is an IP address; empty means all of them.
	BindAddr string
	// BindPort is for UDP and TCP; 0 takes a free one, see [Member.Addr].
	BindPort int
	// Advertise is the IP or IP:port that others use; empty means the bound address,
	// or with 0.0.0.0 the host's private one.
	Advertise string
	// Join lists members to look for: host:port, host or IP. Two or three are enough;
	// own address and dead ones do no harm.
	Join []string
	// Label keeps fleets apart that share a network. Default: warmd.
	Label string
	// Keys encrypts everything with AES-GCM: the first key encrypts, all decrypt; 16,
	// 24 or 32 bytes each. To change a key without a break, roll out old,new, then
	// new,old, then new. Empty means no encryption.
	Keys [][]byte
	// Coordinator asks every node for its exact capacity.
	Coordinator bool
	// Transport replaces the network in tests.
	Transport memberlist.Transport
	Log       *slog.Logger
}

// Validate checks the form of a Config; the error is a *placement.FieldError, or
// several, joined.
func (c Config) Validate() error {
	var errs []error
	for _, e := range c.problems() {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

func (c Config) problems() (out []*placement.FieldError) {
	bad := func(field, format string, args ...any) {
		out = append(out, &placement.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if c.Name == "" || len(c.Name) > placement.MaxNameText {
		bad("name", "must have 1 to %d bytes", placement.MaxNameText)
	}
	if c.BindPort < 0 || c.BindPort > 65535 {
		bad("bind_port", "must be between 0 and 65535")
	}
	if len(c.Label) > memberlist.LabelMaxSize {
		bad("label", "must have at most %d bytes", memberlist.LabelMaxSize)
	}
	if c.BindAddr != "" {
		if _, err := netip.ParseAddr(c.BindAddr); err != nil {
			bad("bind_addr", "%q must be an IP address", c.BindAddr)
		}
	}
	if _, _, err := c.advertise(); err != nil {
		bad("advertise", "%v", err)
	}
	for i, k := range c.Keys {
		if memberlist.ValidateKey(k) != nil {
			bad(fmt.Sprintf("keys[%d]", i), "must have 16, 24 or 32 bytes")
		}
	}
	for i, j := range c.Join {
		if _, _, err := splitSeed(j); err != nil {
			bad(fmt.Sprintf("join[%d]", i), "%q must be host:port: %v", j, err)
		}
	}
	return out
}

// advertise splits the Advertise field; port 0 means the bound one.
func (c Config) advertise() (ip string, port int, err error) {
	if c.Advertise == "" {
		return "", 0, nil
	}
	if a, err := netip.ParseAddr(c.Advertise); err == nil {
		return a.String(), 0, nil
	}
	if ap, err := netip.ParseAddrPort(c.Advertise); err == nil {
		return ap.Addr().String(), int(ap.Port()), nil
	}
	return "", 0, fmt.Errorf("%q must be an IP address, or IP:port", c.Advertise)
}

// library is memberlist's configuration for a LAN, with its traps closed.
func (c Config) library(tr memberlist.Transport, port int, ring *memberlist.Keyring) (*memberlist.Config, error) {
	lib := memberlist.DefaultLANConfig()
	lib.Name, lib.Label, lib.Transport = c.Name, c.Label, tr
	lib.Logger, lib.LogOutput = bridge(c.Log), nil
	lib.BindPort = port
	var err error
	if lib.AdvertiseAddr, lib.AdvertisePort, err = c.advertise(); err != nil {
		return nil, err
	}
	if lib.AdvertisePort == 0 {
		lib.AdvertisePort = port
	}
	lib.Keyring = ring
	lib.TCPTimeout = tcpTimeout
	// Six times the least would let a member that few others accuse pass for alive for
	// 24 s; with twice it has 8 s to object, forty rounds of gossip.
	lib.SuspicionMaxTimeoutMult = 2
	// Each of N members sends a word on r = mult*ceil(log10(N+1)) times, to members at
	// random, so one of them misses it with about e^-r, until a push/pull tells it half a
	// minute later. The library's 4 makes that one word of 20 for somebody among nine
	// members, one of 100 among 32.
	lib.RetransmitMult = 6
	// With 0 a member refuses a host at a new address until it has probed all others once
	// more, and so has forgotten the dead: as many seconds as the fleet has members.
	lib.DeadNodeReclaimTime = reclaimAfter
	lib.EnableCompression = false // LZW gains nothing on our bytes
	return lib, nil
}
