package gossip

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// listen opens the network: the injected transport, or UDP and TCP on one port.
func (m *Member) listen() (memberlist.Transport, int, error) {
	if m.cfg.Transport != nil {
		return bounded{m.cfg.Transport}, cmp.Or(m.cfg.BindPort, DefaultPort), nil
	}
	tries := 1
	if m.cfg.BindPort == 0 {
		tries = 10 // the free TCP port may be taken for UDP
	}
	var err error
	for range tries {
		var tr *memberlist.NetTransport
		tr, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{cmp.Or(m.cfg.BindAddr, "0.0.0.0")}, BindPort: m.cfg.BindPort, Logger: bridge(m.log),
		})
		if err == nil {
			return bounded{tr}, tr.GetAutoBindPort(), nil
		}
	}
	hint := "is the address one of this host's?"
	if errors.Is(err, syscall.EADDRINUSE) || cmp.Or(m.cfg.BindPort, 0) != 0 {
		hint = "is another agent running, or the port taken? choose another gossip port"
	}
	return nil, 0, fmt.Errorf("listen for gossip on %s port %d: %w (%s)", cmp.Or(m.cfg.BindAddr, "0.0.0.0"), m.cfg.BindPort, err, hint)
}

// bounded puts a deadline on every stream that we open: memberlist sets none when
// it sends a user message, and a peer that is stopped would hold us for ever.
type bounded struct{ memberlist.Transport }

// DialTimeout bounds the dial and all that follows on the connection.
func (b bounded) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	conn, err := b.Transport.DialTimeout(addr, min(timeout, dialTimeout))
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}
