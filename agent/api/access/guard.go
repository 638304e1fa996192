package access

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"warmd/placement"
)

// connLife is how long a TLS connection is used. A certificate that was replaced, has
// expired, or whose CA was taken out is good for this long at most; clients are told
// with an answer, so that no request is lost to it.
const connLife = 5 * time.Minute

// Guard stands before a server's routes. Make it with [NewGuard], put it there with
// [Guard.Protect].
type Guard struct {
	server  Server
	members atomic.Pointer[members]
	uid     int
	log     *slog.Logger
}

// NewGuard makes the guard of an agent or a coordinator.
func NewGuard(s Server, g Groups, log *slog.Logger) *Guard {
	d := &Guard{server: s, uid: os.Geteuid(), log: log}
	d.SetGroups(g)
	return d
}

// SetGroups replaces the groups, for connections that are open too.
func (g *Guard) SetGroups(to Groups) {
	m, missing := to.resolve()
	if len(missing) > 0 {
		g.log.Debug("groups of [access] that this host does not have give nobody a role", "groups", missing)
	}
	g.members.Store(m)
}

// Protect puts the guard before everything that a server serves.
func (g *Guard) Protect(srv *http.Server) {
	srv.Handler = g.Wrap(srv.Handler)
	srv.ConnContext = connContext
	srv.ErrorLog = handshakeLog(g.log)
}

// Wrap is the guard before a handler. Connections must have come by a server that
// [Guard.Protect] has seen: nobody is known on others.
func (g *Guard) Wrap(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	for pattern, need := range g.server.Need {
		mux.Handle(pattern, g.gate(need, next))
	}
	mux.Handle("/", g.gate(Admin, next))
	return mux
}

// gate lets those with a role through.
func (g *Guard) gate(need Role, next http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*conn); ok && r.TLS != nil && time.Since(c.since) > connLife {
			w.Header().Set("Connection", "close")
		}
		if need == None {
			next.ServeHTTP(w, r)
			return
		}
		peer := peerOf(r)
		e := &entry{log: g.log, peer: peer, role: g.roleOf(peer)}
		e.request = r.WithContext(withEntry(r.Context(), e))
		switch {
		case e.role < need:
			err := g.refusal(e, need)
			e.write(err.Code.Status(), err.Message)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(err.Code.Status())
			_ = json.NewEncoder(w).Encode(err)
		case need == Read:
			next.ServeHTTP(w, r)
		default:
			e.watch(w, next)
		}
	}
}

// roleOf is what a peer may do.
func (g *Guard) roleOf(p Peer) Role {
	switch p.Via {
	case "unix", "tcp":
		if p.UID == 0 || p.UID == g.uid {
			return Admin
		}
		return g.members.Load().role(p.GIDs)
	case "tls":
		best := None
		for _, unit := range p.Units {
			r, err := ParseRole(unit)
			if err != nil {
				r = g.server.Units[unit]
			}
			best = max(best, r)
		}
		return best
	}
	return None
}

// refusal says what is missing, and how to get it.
func (g *Guard) refusal(e *entry, need Role) *placement.Error {
	what := fmt.Sprintf("%s %.120s needs role %s", e.request.Method, e.request.URL.Path, need)
	switch e.peer.Via {
	case "":
		return placement.Errorf(placement.CodeUnauthorized, "%s, and nobody can be told from this connection", what).
			WithHint("use the Unix socket, or https with a client certificate")
	case "tls":
		return placement.Errorf(placement.CodeForbidden, "%s: the certificate of %s has role %s", what, e.peer, e.role).
			WithHint("take a certificate with OU=%s: warmctl pki issue %s NAME", need, need)
	}
	err := placement.Errorf(placement.CodeForbidden, "%s: %s has role %s", what, e.peer, e.role)
	groups := g.members.Load().enough(need)
	if len(groups) == 0 {
		return err.WithHint("only root and the server's own user may: [access] %s in its configuration names no group", need)
	}
	return err.WithHint("members of group %s may: sudo usermod -aG %s %s, then log in again", strings.Join(groups, " or "), groups[0], e.peer.User)
}
