package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"warmd/placement"
)

// flock takes the lock, with some patience: a child that a killed agent was just
// forking holds a copy of it until it execs.
func flock(f *os.File, patience time.Duration) error {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

func readTail(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file: move it away", path)
	}
	off := max(fi.Size()-most, 0)
	b := make([]byte, fi.Size()-off)
	n, err := f.ReadAt(b, off)
	if n < len(b) && err != nil {
		return nil, err
	}
	return b, nil
}

// write appends a frame and applies its entry, or does neither. mu is held.
func (j *Journal) write(b []byte, e journalEntry) (uint64, error) {
	if j.dirty || (j.size > compactAbove && j.size > 4*j.base) {
		if err := j.rewrite(); err != nil && j.dirty {
			return 0, err
		}
	}
	if _, err := j.file.Write(b); err != nil {
		// Half a frame may be there: a reader skips it, but take it away if we can.
		if terr := j.file.Truncate(j.size); terr != nil {
			j.dirty = true
		}
		return 0, fmt.Errorf("append: %w", err)
	}
	j.size += int64(len(b))
	j.seq++
	j.state.apply(e)
	return j.seq, nil
}

// sync waits until the frame is on the disk. Many waiters share one fsync.
func (j *Journal) sync(seq uint64) error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if j.synced >= seq {
		return nil
	}
	j.mu.Lock()
	upTo, f := j.seq, j.file
	j.mu.Unlock()
	if err := datasync(f); err != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.file != f { // a rewrite replaced the file, and synced what it wrote
			j.synced = upTo
			return nil
		}
		j.dirty = true // after a failed sync nobody knows what the file holds
		return fmt.Errorf("sync: %w", err)
	}
	j.synced = upTo
	return nil
}

// rewrite replaces the file by what is known now, synced. mu is held.
func (j *Journal) rewrite() error {
	tmp := filepath.Join(j.dir, journalFile+".new")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("rewrite: %w", err)
	}
	var b []byte
	for _, e := range j.state.entries() {
		p, err := json.Marshal(e)
		if err != nil {
			_ = f.Close()
			return fmt.Errorf("rewrite: %w", err)
		}
		b = append(b, frame(p)...)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(j.dir, journalFile))
	}
	if err == nil {
		err = syncDir(j.dir)
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(tmp)
		return fmt.Errorf("rewrite: %w", err)
	}
	if j.file != nil {
		_ = j.file.Close()
	}
	j.file, j.size, j.base, j.dirty = f, int64(len(b)), int64(len(b)), false
	return nil
}

func datasync(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = c.Control(func(fd uintptr) { serr = unix.Fdatasync(int(fd)) })
	return errors.Join(err, serr)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// full is the refusal of a claim that cannot be written down.
func full(err error) error {
	return placement.Errorf(placement.CodeDiskFull, "the agent's journal cannot be written: %v", err).
		WithHint("free space in the agent's data folder, or look at the disk; claims are taken again as soon as a write works")
}
