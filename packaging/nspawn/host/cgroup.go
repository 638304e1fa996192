package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Every run, and in it every host, has a cgroup v2 of its own: it is frozen to
// pause a host, and killed to cut its power, whatever its processes think of it.

// makeCgroup makes the cgroup of a run.
func makeCgroup(id string) (string, error) {
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		root = "/sys/fs/cgroup/unified" // a machine with cgroup v1 has v2 beside it
	}
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	dir := filepath.Join(root, "warmd-hosts", id)
	return dir, os.MkdirAll(dir, 0o755)
}

// killCgroup kills every process in a cgroup and removes it.
func killCgroup(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	if err := waitCgroup(dir, "populated 0", 20*time.Second); err != nil {
		return err
	}
	return removeCgroup(dir)
}

// removeCgroup removes an empty cgroup and those in it.
func removeCgroup(dir string) error {
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	for _, d := range slices.Backward(all) {
		err = errors.Join(err, os.Remove(d))
	}
	return err
}

// freezeCgroup stops or continues every process in a cgroup, and answers when all are.
func freezeCgroup(dir string, freeze bool) error {
	word := "0"
	if freeze {
		word = "1"
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte(word), 0); err != nil {
		return fmt.Errorf("freeze cgroup: %w", err)
	}
	return waitCgroup(dir, "frozen "+word, 10*time.Second)
}

// waitCgroup waits until cgroup.events has the line.
func waitCgroup(dir, line string, within time.Duration) error {
	for end := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil {
			return fmt.Errorf("wait for cgroup: %w", err)
		}
		if slices.Contains(strings.Split(string(b), "\n"), line) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("wait for cgroup %s: not %q within %s", dir, line, within)
		}
	}
}
