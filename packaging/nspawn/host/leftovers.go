package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const janitorArg = "sweep-hosts-when-stdin-ends"

// BeJanitor plays the janitor if this process was started as one, and then does
// not return. TestMain calls it first.
func BeJanitor() {
	if len(os.Args) != 3 || os.Args[1] != janitorArg {
		return
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	lock, err := lockRun(os.Args[2], 0)
	if err == nil {
		err = sweep(os.Args[2])
		lock.Close()
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// record is what a sweep cannot tell from the name of a run.
type record struct {
	Disk   string `json:"disk"`
	Cgroup string `json:"cgroup"`
}

func saveRun(dir string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "run.json"), b, 0o600)
}

// lockRun makes a run's folder and takes its lock, which the kernel gives back when
// this process ends, however it ends. With LOCK_NB it does not wait for the owner.
func lockRun(dir string, how int) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock run %s: %w", dir, err)
	}
	return f, nil
}

// SweepDead removes what runs left whose process is gone.
func SweepDead() error {
	dirs, err := filepath.Glob(filepath.Join(runsDir, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		lock, err := lockRun(dir, syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue // it lives
		}
		if err == nil {
			err = sweep(dir)
			lock.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweep removes everything of one run: processes first, then what they held.
func sweep(dir string) error {
	id := filepath.Base(dir)
	var r record
	b, err := os.ReadFile(filepath.Join(dir, "run.json"))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if errors.Is(err, os.ErrNotExist) {
		err = nil // it ended before it had made anything
	}
	errs := []error{err}
	if r.Cgroup != "" {
		errs = append(errs, killCgroup(r.Cgroup))
	}
	if _, err := os.Stat(memoryCgroup(id)); err == nil {
		errs = append(errs, removeCgroup(memoryCgroup(id)))
	}
	errs = append(errs, unmountBelow(dir), removeNamespaces(id))
	// nspawn leaves its propagation folders when it is killed.
	left, _ := filepath.Glob("/run/systemd/nspawn/propagate/" + id + "-*")
	for _, d := range append(left, r.Disk) {
		if d != "" {
			errs = append(errs, os.RemoveAll(d))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep run %s: %w", id, err)
	}
	return os.RemoveAll(dir)
}

// unmountBelow unmounts everything below dir, the newest first.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for _, line := range slices.Backward(lines) {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", f[4], err))
			}
		}
	}
	return errors.Join(errs...)
}
