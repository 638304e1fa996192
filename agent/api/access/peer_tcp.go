package access

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
)

// errNobody means that the kernel knows no process with such a socket.
var errNobody = errors.New("no local process has the other end of the connection")

// tcpPeer finds the user whose socket the other end of a loopback connection is. A
// port of 127.0.0.1 is open to every user and every engine of the host: without this
// any of them would be anybody.
func tcpPeer(local, remote net.Addr) (Peer, error) {
	l, okL := addrPort(local)
	r, okR := addrPort(remote)
	if !okL || !okR || !l.Addr().IsLoopback() || !r.Addr().IsLoopback() {
		return Peer{}, errNobody
	}
	table := "/proc/self/net/tcp"
	if l.Addr().Is6() {
		table = "/proc/self/net/tcp6"
	}
	uid, err := socketOwner(table, r, l)
	if err != nil {
		return Peer{}, err
	}
	return Peer{Via: "tcp", UID: uid}, nil
}

// groupsOf are the groups of a user: over TCP the kernel does not tell those of the
// process. A user that the host does not know has none.
func groupsOf(uid int) (gids []int) {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return nil
	}
	ids, _ := u.GroupIds()
	for _, id := range ids {
		if gid, err := strconv.Atoi(id); err == nil {
			gids = append(gids, gid)
		}
	}
	return gids
}

func addrPort(a net.Addr) (netip.AddrPort, bool) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), true
}

// socketOwner reads a table of the kernel's TCP sockets. A socket that its process has
// closed is listed with inode 0 and, whoever it was, uid 0: it has no owner any more.
func socketOwner(table string, local, remote netip.AddrPort) (uid int, err error) {
	f, err := os.Open(table)
	if err != nil {
		return 0, fmt.Errorf("find the owner of a socket: %w", err)
	}
	defer f.Close()
	mine, other := procAddr(local), procAddr(remote)
	for s := bufio.NewScanner(f); s.Scan(); {
		// sl local remote state queues timer retransmits uid timeout inode ...
		c := strings.Fields(s.Text())
		if len(c) < 10 || c[1] != mine || c[2] != other {
			continue
		}
		if c[9] == "0" {
			return 0, errNobody
		}
		return strconv.Atoi(c[7])
	}
	return 0, errNobody
}

// procAddr spells an address as the kernel does: each 32-bit word in the host's byte
// order, in hex.
func procAddr(a netip.AddrPort) string {
	b := a.Addr().AsSlice()
	for i := 0; i+4 <= len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	return strings.ToUpper(hex.EncodeToString(b)) + fmt.Sprintf(":%04X", a.Port())
}
