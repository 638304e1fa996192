package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Remove removes a runtime, finished or not. It is gone from List at once, before
// its gigabytes are. A runtime that processes still run from is refused.
func Remove(ctx context.Context, root, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	link := filepath.Join(root, name)
	if _, err := os.Lstat(link); errors.Is(err, fs.ErrNotExist) {
		return hint(fmt.Errorf("remove runtime %s: there is none in %s", name, root), "warmd runtime ls shows what there is")
	} else if err != nil {
		return fmt.Errorf("remove runtime %s: %w", name, err)
	}
	unlock, err := lockName(root, name)
	if err != nil {
		return err
	}
	defer unlock()
	dir, err := filepath.EvalSymlinks(link)
	if err != nil { // a link whose folder is gone already
		dir = ""
	}
	if dir != "" {
		if err := ours(dir, link); err != nil {
			return err
		}
		if pids := users(ctx, link, dir); len(pids) > 0 {
			return hint(fmt.Errorf("remove runtime %s: processes %s run from it", name, strings.Join(pids, ", ")),
				"release its placements and stop warmd first: the agent keeps a zygote of every runtime")
		}
		// Without its manifest it is no runtime any more; the rest may take minutes.
		if err := os.Remove(filepath.Join(dir, manifestFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove runtime %s: %w", name, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove runtime %s: %w", name, err)
		}
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove runtime %s: %w", name, err)
	}
	return nil
}

// ours refuses to delete a folder that no add made.
func ours(dir, link string) error {
	for _, f := range []string{manifestFile, filepath.Join(workDir, "state.json")} {
		if _, err := os.Stat(filepath.Join(dir, f)); err == nil {
			return nil
		}
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) == 0 {
		return nil
	}
	return hint(fmt.Errorf("remove %s: it does not look like a runtime", link), "look into %s and remove it yourself", dir)
}

// users finds the processes that were started from a runtime's folder.
func users(ctx context.Context, dirs ...string) (pids []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if ctx.Err() != nil {
			return nil
		}
		raw, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue // it ended meanwhile
		}
		pid := filepath.Base(p)
		program, _, _ := strings.Cut(string(raw), "\x00")
		for _, d := range dirs {
			if strings.HasPrefix(program, d+"/") && pid != strconv.Itoa(os.Getpid()) {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}
