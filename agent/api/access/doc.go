// Package access says who may do what on an agent or a coordinator: the one place
// that a reader who worries about security has to read.
//
// Who calls is told by the kernel or by a certificate, never by the request:
//
//	Unix socket              SO_PEERCRED and SO_PEERGROUPS; groups give roles
//	TCP with TLS             the certificate's organizational unit is the role
//	TCP without, loopback    the user whose socket it is, from /proc/net/tcp; groups
//	                         give roles. Other TCP without TLS is never listened on
//
// A role is one of read < place < admin. rules.go lists the role that each route
// needs; a route that is not listed needs admin. Root and the server's own user are
// admin. Refusals are a placement.Error with status 401 (nobody we know) or 403, and
// a line in the log with audit=true, as is every call that changes something.
//
// # Reading order
//
// role.go, rules.go, peer.go (who), groups.go (which role), guard.go (the decision),
// audit.go, then files.go and tls.go (certificates that change without a restart),
// explain.go (what a failed handshake means, in words).
package access
