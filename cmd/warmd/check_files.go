package main

import (
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// account is a user of this host, as files see it.
type account struct {
	name string
	uid  uint32
	gids []uint32
}

func findAccount(name string) *account {
	u, err := user.Lookup(name)
	if err != nil {
		return nil
	}
	a := &account{name: name}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	a.uid = uint32(uid)
	groups, _ := u.GroupIds()
	for _, g := range append(groups, u.Gid) {
		gid, _ := strconv.ParseUint(g, 10, 32)
		a.gids = append(a.gids, uint32(gid))
	}
	return a
}

// may reports whether the mode of a file or folder lets the account at it.
func (a *account) may(fi os.FileInfo, want os.FileMode) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	mode := fi.Mode().Perm()
	switch {
	case !ok || a.uid == 0:
		return true
	case st.Uid == a.uid:
		mode >>= 6
	case slices.Contains(a.gids, st.Gid):
		mode >>= 3
	}
	return mode&want == want
}

// mayRead is the first part of a path that keeps the account from reading it, or "".
func (a *account) mayRead(path string) (stopsAt string) {
	path = filepath.Clean(path)
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if fi, err := os.Stat(dir); err == nil && !a.may(fi, 1) {
			stopsAt = dir // the outermost of them
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if stopsAt != "" {
		return stopsAt
	}
	fi, err := os.Stat(path)
	if err != nil {
		return ""
	}
	want := os.FileMode(4)
	if fi.IsDir() {
		want = 5
	}
	if !a.may(fi, want) {
		return path
	}
	return ""
}

// readable checks that the service can read what root can.
func (r *report) readable(key, path string) { r.readableBy(r.service, key, path) }

func (r *report) readableBy(a *account, key, path string) {
	if a == nil {
		return
	}
	if at := a.mayRead(path); at != "" {
		r.problem(key, "%s cannot be read by user %s, who runs the service: look at owner and mode of %s", path, a.name, at)
	}
}

// secret warns of a file that everybody may read.
func (r *report) secret(key, path string) {
	if fi, err := os.Stat(path); err == nil && fi.Mode().Perm()&0o004 != 0 {
		r.warning("%s: everybody on this host may read %s: chmod o= %s", key, path, path)
	}
}

func numeric(s string) bool {
	_, err := strconv.ParseUint(s, 10, 31)
	return err == nil
}
