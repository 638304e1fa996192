package access

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxGroups is the kernel's limit for one process.
const maxGroups = 1 << 16

// unixPeer asks for the credentials that the other process had when it connected. The
// kernel keeps them: the process may be gone by now, or be another one.
func unixPeer(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var gids []int
	var errCred, errGroups error
	if err := raw.Control(func(fd uintptr) {
		cred, errCred = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		gids, errGroups = peerGroups(int(fd))
	}); err != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	if err := errors.Join(errCred, errGroups); err != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	if !slices.Contains(gids, int(cred.Gid)) {
		gids = append(gids, int(cred.Gid))
	}
	return Peer{Via: "unix", UID: int(cred.Uid), PID: int(cred.Pid), GIDs: gids}, nil
}

// peerGroups reads SO_PEERGROUPS, the supplementary groups. x/sys has the number of
// the option only; the kernel answers ERANGE with the size that it needs.
func peerGroups(fd int) ([]int, error) {
	gids := make([]uint32, 64)
	for {
		size := uint32(len(gids)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&gids[0])), uintptr(unsafe.Pointer(&size)), 0)
		n := int(size / 4)
		switch {
		case errno == unix.ERANGE && n > len(gids) && n <= maxGroups:
			gids = make([]uint32, n)
			continue
		case errno != 0:
			return nil, fmt.Errorf("get SO_PEERGROUPS: %w", errno)
		}
		out := make([]int, 0, n+1)
		for _, g := range gids[:n] {
			out = append(out, int(g))
		}
		return out, nil
	}
}
