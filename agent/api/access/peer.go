package access

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Peer is who is at the other end of a connection.
type Peer struct {
	// Via is how we know: unix, tcp (the owner of a loopback socket), tls, or empty
	// when we do not.
	Via string
	// UID, GIDs and PID are of a local process; PID is 0 over TCP.
	UID, PID int
	GIDs     []int
	User     string // the name of UID
	// Name and Units are the CN and the OUs of a certificate.
	Name  string
	Units []string
}

// String is the peer in the log: who, and how that is known.
func (p Peer) String() string {
	switch p.Via {
	case "":
		return "unknown"
	case "tls":
		return fmt.Sprintf("CN=%s,OU=%s", p.Name, strings.Join(p.Units, "+"))
	}
	return fmt.Sprintf("uid=%d(%s)", p.UID, p.User)
}

// userName is a user's name, or the number again when the host knows none.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// conn is what is kept about a connection.
type conn struct {
	since time.Time
	peer  Peer
	named sync.Once
}

// who is the peer with what the host's user database knows of it. That may take a
// while on hosts that ask a directory: so once, and not where connections are accepted.
func (c *conn) who() Peer {
	c.named.Do(func() {
		switch c.peer.Via {
		case "tcp":
			c.peer.GIDs = groupsOf(c.peer.UID)
			fallthrough
		case "unix":
			c.peer.User = userName(c.peer.UID)
		}
	})
	return c.peer
}

type connKey struct{}

// connContext is an http.Server.ConnContext. It asks the kernel who connected, before
// anything is read, so that nobody answers for a socket that was theirs a while ago.
func connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, &conn{peer: localPeer(c), since: time.Now()})
}

// localPeer is the process at the other end; the zero Peer when the kernel does not
// say, or when it is another host's.
func localPeer(c net.Conn) Peer {
	for {
		inner, ok := c.(interface{ NetConn() net.Conn })
		if _, isTLS := c.(*tls.Conn); !ok || isTLS {
			break
		}
		c = inner.NetConn()
	}
	switch c := c.(type) {
	case *net.UnixConn:
		if p, err := unixPeer(c); err == nil {
			return p
		}
	case *net.TCPConn:
		if p, err := tcpPeer(c.LocalAddr(), c.RemoteAddr()); err == nil {
			return p
		}
	}
	return Peer{}
}

// peerOf is who sent a request. A certificate is believed only if the handshake has
// verified it.
func peerOf(r *http.Request) Peer {
	if r.TLS != nil {
		if len(r.TLS.VerifiedChains) == 0 {
			return Peer{}
		}
		s := r.TLS.PeerCertificates[0].Subject
		return Peer{Via: "tls", Name: s.CommonName, Units: s.OrganizationalUnit}
	}
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		return c.who()
	}
	return Peer{}
}
