package runtime

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// engineUser runs engines where systemd starts them (packaging/sysusers). A runtime
// that root adds is root's, so that nothing an engine does can change what the next
// one runs; its caches are the engines'. Without that user on the host everything
// belongs to whoever adds it.
var engineUser = "warmd-engine"

type ids struct{ uid, gid uint32 }

// engines are the ids of the engines' user, when it is for us to care for it.
func engines() (who ids, ok bool) {
	u, err := user.Lookup(engineUser)
	if err != nil || os.Geteuid() != 0 {
		return ids{}, false
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return ids{uint32(uid), uint32(gid)}, err1 == nil && err2 == nil
}

// readable makes what root adds readable for others: not all of it is written by us.
func readable() (undo func()) {
	if os.Geteuid() != 0 {
		return func() {}
	}
	old := syscall.Umask(0o022)
	return func() { syscall.Umask(old) }
}

// giveCaches gives the caches of a runtime to the engines' user.
func giveCaches(dir string) error {
	who, ok := engines()
	if !ok {
		return nil
	}
	err := filepath.WalkDir(filepath.Join(dir, cacheDir), func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(who.uid), int(who.gid)) // not what a link points to
	})
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("give caches to user %s: %w", engineUser, err)
	}
	return nil
}

// barrier is the first folder on the way to a file, links followed, that the engines'
// user may not enter, or the file itself if that may not be read; "" when there is none.
func barrier(file string) string {
	who, ok := engines()
	if !ok {
		return ""
	}
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return file
	}
	if !who.may(real, 4) {
		return real
	}
	var shut string
	for dir := filepath.Dir(real); ; dir = filepath.Dir(dir) {
		if !who.may(dir, 1) {
			shut = dir // the topmost one is what has to be opened first
		}
		if dir == filepath.Dir(dir) {
			return shut
		}
	}
}

// may reports whether a mode bit (4: read, 1: enter) is there for the user.
func (who ids) may(path string, bit os.FileMode) bool {
	fi, err := os.Stat(path)
	if err != nil {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch mode := fi.Mode().Perm(); {
	case !ok:
		return true
	case st.Uid == who.uid:
		return mode>>6&bit != 0
	case st.Gid == who.gid:
		return mode>>3&bit != 0
	default:
		return mode&bit != 0
	}
}

// reachable refuses an interpreter that engines could not run, before gigabytes are
// fetched for it.
func reachable(python string) error {
	if b := barrier(python); b != "" {
		return hint(fmt.Errorf("use %s: user %s, who runs engines, may not enter %s", python, engineUser, b),
			"give an interpreter that every user can run, for example --python /usr/bin/python3")
	}
	return nil
}

// checkOwner finds what keeps the engines' user from a runtime.
func checkOwner(m Manifest) (out []Finding) {
	who, ok := engines()
	if !ok {
		return nil
	}
	programs := []string{m.Python}
	if m.Kind == KindExec {
		programs = append(programs, m.Command[0])
	}
	for _, p := range programs {
		if b := barrier(p); filepath.IsAbs(p) && b != "" && fileExists(p) { // one that is not there is another finding
			out = append(out, Finding{Code: "access", Message: fmt.Sprintf("user %s, who runs engines, may not enter %s, on the way to %s", engineUser, b, p),
				Cure: fmt.Sprintf("warmd runtime rm %s, then add it again with a program that every user can run, e.g. --python /usr/bin/python3", m.Name)})
		}
	}
	fi, err := os.Stat(filepath.Join(m.Dir, cacheDir))
	if err != nil {
		return out
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != who.uid {
		out = append(out, Finding{Code: "owner", Message: fmt.Sprintf("the caches are not user %s's, who runs engines: what is compiled at a start is compiled again at the next", engineUser),
			Cure: fixHint(m) + " gives them", Fixable: true})
	}
	return out
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
