package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// workDir holds everything of an add that is not finished: its options, what is
// done, logs. It goes when the manifest comes.
const workDir = "adding"

// state is what an unfinished add has done.
type state struct {
	Options AddOptions `json:"options"`
	Done    []string   `json:"done"`
}

// claim takes the name: it locks out another add of it, refuses one that is there,
// and makes the folder.
func (o AddOptions) claim() (dir string, unlock func(), err error) {
	if err := os.MkdirAll(o.Root, 0o755); err != nil {
		return "", nil, hint(fmt.Errorf("add runtime %s: %w", o.Name, err), "choose a folder that you may write with --root or WARMD_RUNTIMES")
	}
	// Links are followed once, here: the manifest's paths must be those that Load sees.
	if o.Root, err = filepath.EvalSymlinks(o.Root); err != nil {
		return "", nil, fmt.Errorf("add runtime %s: %w", o.Name, err)
	}
	if unlock, err = lockName(o.Root, o.Name); err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	link := filepath.Join(o.Root, o.Name)
	if _, err := os.Stat(filepath.Join(link, manifestFile)); err == nil {
		return "", unlock, hint(fmt.Errorf("add runtime %s: there is one of that name in %s", o.Name, o.Root), "choose another name, or remove it first: warmd runtime rm %s", o.Name)
	}
	dir = link
	if o.Dir != "" {
		dir = o.Dir
		if have, err := os.Readlink(link); err == nil && have != dir {
			return "", unlock, hint(fmt.Errorf("add runtime %s: an unfinished one is in %s", o.Name, have), "warmd runtime rm %s", o.Name)
		}
	} else if have, err := os.Readlink(link); err == nil {
		return "", unlock, hint(fmt.Errorf("add runtime %s: an unfinished one is in %s", o.Name, have), "give --dir %s to go on, or warmd runtime rm %s", have, o.Name)
	}
	if err := o.prepare(dir); err != nil {
		return "", unlock, err
	}
	if o.Dir != "" {
		if err := os.Symlink(dir, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", unlock, fmt.Errorf("add runtime %s: %w", o.Name, err)
		}
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", unlock, fmt.Errorf("add runtime %s: %w", o.Name, err)
	}
	return dir, unlock, nil
}

// prepare makes the folder, or cleans one that an add with other options left. A
// folder with anybody else's files in it is not touched.
func (o AddOptions) prepare(dir string) error {
	work := filepath.Join(dir, workDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("add runtime %s: %w", o.Name, err)
	}
	if len(entries) > 0 {
		st, err := readState(work)
		if err != nil {
			return hint(fmt.Errorf("add runtime %s: %s is not empty and not an unfinished runtime", o.Name, dir), "choose another folder, or empty it yourself")
		}
		if !sameOptions(st.Options, o) {
			for _, e := range entries {
				// The work folder is what makes the rest ours: it goes last.
				if e.Name() != workDir {
					if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
						return fmt.Errorf("clean %s: %w", dir, err)
					}
				}
			}
			if err := os.RemoveAll(work); err != nil {
				return fmt.Errorf("clean %s: %w", dir, err)
			}
		}
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return fmt.Errorf("add runtime %s: %w", o.Name, err)
	}
	if _, err := readState(work); err != nil {
		return writeState(work, state{Options: o})
	}
	return nil
}

func sameOptions(a, b AddOptions) bool {
	ja, _ := json.Marshal(a)
	jb, _ := json.Marshal(b)
	return string(ja) == string(jb)
}

func readState(work string) (state, error) {
	var st state
	raw, err := os.ReadFile(filepath.Join(work, "state.json"))
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(raw, &st)
}

func writeState(work string, st state) error {
	raw, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return writeWhole(filepath.Join(work, "state.json"), raw, 0o644)
}

// lockName keeps two adds, or an add and a remove, of one name apart. The kernel
// lets go of it when the process ends, however it ends.
func lockName(root, name string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(root, "."+name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock runtime %s: %w", name, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, hint(fmt.Errorf("lock runtime %s: another warmd is adding or removing it", name), "wait for it to end")
	}
	return func() { f.Close() }, nil
}
