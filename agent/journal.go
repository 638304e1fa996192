package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"warmd/agent/internal/device"
	"warmd/placement"
)

// Journal limits.
const (
	journalFile  = "journal"
	maxJournal   = 64 << 20 // bytes read of a file; the end of a larger one
	compactAbove = 1 << 20  // bytes of a file before it may be rewritten
	keepEnded    = 1024     // ended placements that survive a rewrite
)

// Journal is the agent's memory on disk: placements, parked workers, the drain
// flag. A record is appended, and for a claim synced, before anybody is told.
//
// Invariants:
//
//	Put(r, durable) == nil  implies  a reader of the file after a power cut sees r
//	the file is only ever appended to, or replaced whole by rename
//	dirty  implies  memory knows more than the file: the next write begins by
//	       rewriting the file, so one success makes both equal again
//
// No content of the file keeps the agent from starting: what verifies is kept, the
// rest is set aside as journal.damaged for people to look at.
type Journal struct {
	dir  string
	lock *os.File
	log  *slog.Logger

	mu      sync.Mutex // guards what follows; held during writes, not during syncs
	file    *os.File
	size    int64
	base    int64 // size right after the last rewrite
	seq     uint64
	dirty   bool
	state   journalState
	damaged int

	syncMu sync.Mutex // one sync at a time; what was written meanwhile shares the next
	synced uint64     // guarded by syncMu: every frame up to this one is on the disk
}

// journalState is what the journal knows.
type journalState struct {
	placements map[string]device.Record
	parked     map[string]device.ParkedRecord
	draining   bool
}

// journalEntry is one frame's payload: exactly one field is set.
type journalEntry struct {
	Placement *device.Record       `json:"p,omitempty"`
	Park      *device.ParkedRecord `json:"w,omitempty"`
	Unpark    string               `json:"u,omitempty"`
	Drain     *bool                `json:"d,omitempty"`
}

// OpenJournal reads the journal in dir and takes the folder's lock.
func OpenJournal(dir string, log *slog.Logger) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock data folder: %w", err)
	}
	if err := flock(lock, time.Second); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("lock data folder %s: another agent uses it: %w", dir, err)
	}
	j := &Journal{dir: dir, lock: lock, log: log}
	if err := j.load(); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return j, nil
}

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

// load reads what is there. Only a file that cannot be read at all is an error.
func (j *Journal) load() error {
	path := filepath.Join(j.dir, journalFile)
	raw, err := readTail(path, maxJournal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read journal: %w", err)
	}
	j.state, j.damaged = replay(raw)
	if j.damaged > 0 {
		j.log.Error("the journal is damaged: what verifies is kept, workers that it does not explain are quarantined",
			"bytes", j.damaged, "of", len(raw), "kept", path+".damaged")
		if err := os.Rename(path, path+".damaged"); err != nil {
			j.log.Error("set damaged journal aside", "err", err)
		}
	}
	if err := j.rewrite(); err != nil {
		j.dirty = true
		j.log.Error("write journal: claims are refused until this works", "err", err)
	}
	return nil
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

// replay is pure: any bytes give a state.
func replay(raw []byte) (journalState, int) {
	s := journalState{placements: map[string]device.Record{}, parked: map[string]device.ParkedRecord{}}
	undecodable := 0
	damaged := frames(raw, func(p []byte) {
		var e journalEntry
		if err := json.Unmarshal(p, &e); err != nil {
			undecodable += len(p) // a later version wrote it, or a bug
			return
		}
		s.apply(e)
	})
	return s, damaged + undecodable
}

func (s *journalState) apply(e journalEntry) {
	switch {
	case e.Placement != nil && e.Placement.Placement.ID != "":
		s.placements[e.Placement.Placement.ID] = *e.Placement
	case e.Park != nil && e.Park.Worker != "":
		s.parked[e.Park.Worker] = *e.Park
	case e.Unpark != "":
		delete(s.parked, e.Unpark)
	case e.Drain != nil:
		s.draining = *e.Drain
	}
}

// Put stores a placement's record.
func (j *Journal) Put(r device.Record, durable bool) error {
	return j.add(journalEntry{Placement: &r}, durable)
}

// Park stores a parked worker.
func (j *Journal) Park(p device.ParkedRecord) { _ = j.add(journalEntry{Park: &p}, false) }

// Unpark forgets one.
func (j *Journal) Unpark(worker string) {
	j.mu.Lock()
	_, known := j.state.parked[worker]
	j.mu.Unlock()
	if known {
		_ = j.add(journalEntry{Unpark: worker}, false)
	}
}

// SetDraining stores the drain flag.
func (j *Journal) SetDraining(on bool) error { return j.add(journalEntry{Drain: &on}, true) }

// placements lists every record, the longest untouched first.
func (j *Journal) placements() []device.Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]device.Record, 0, len(j.state.placements))
	for _, r := range j.state.placements {
		out = append(out, r)
	}
	sort.Slice(out, func(i, k int) bool { return out[i].Placement.Updated.Before(out[k].Placement.Updated) })
	return out
}

// parked lists the parked workers by id.
func (j *Journal) parked() map[string]device.ParkedRecord {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.state.parked)
}

// workerRecords lists the record of every worker that should be living.
func (j *Journal) workerRecords() (out []json.RawMessage) {
	for _, p := range j.parked() {
		out = append(out, p.Record)
	}
	for _, r := range j.placements() {
		if len(r.WorkerRecord) > 0 && !r.Placement.State.Terminal() {
			out = append(out, r.WorkerRecord)
		}
	}
	return out
}

// forgetLiving ends everything that lives, because its engines were ended.
func (j *Journal) forgetLiving(reason string) {
	for id := range j.parked() {
		j.Unpark(id)
	}
	for _, r := range j.placements() {
		if p := &r.Placement; !p.State.Terminal() {
			p.State, p.Reason, p.Updated = placement.Failed, reason, time.Now()
			_ = j.Put(r, false)
		}
	}
}

// add appends an entry. One that must be durable and cannot be is not remembered;
// any other is, and reaches the disk with the next write that works.
func (j *Journal) add(e journalEntry, durable bool) error {
	payload, err := json.Marshal(e)
	if err == nil && len(payload) > maxPayload {
		err = fmt.Errorf("entry has %d bytes, at most %d fit", len(payload), maxPayload)
	}
	if err != nil {
		return fmt.Errorf("encode journal entry: %w", err)
	}
	j.mu.Lock()
	seq, err := j.write(frame(payload), e)
	if err != nil && !durable {
		j.state.apply(e)
		j.dirty = true
	}
	j.mu.Unlock()
	if err == nil && durable {
		err = j.sync(seq)
	}
	if err != nil {
		if durable {
			return full(err)
		}
		j.log.Error("write journal", "err", err)
	}
	return nil
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

// entries is the state as the fewest entries, the oldest ended placements left out.
func (s *journalState) entries() []journalEntry {
	var live, ended []device.Record
	for _, r := range s.placements {
		if r.Placement.State.Terminal() {
			ended = append(ended, r)
		} else {
			live = append(live, r)
		}
	}
	sort.Slice(ended, func(i, k int) bool { return ended[i].Placement.Updated.Before(ended[k].Placement.Updated) })
	if n := len(ended) - keepEnded; n > 0 {
		for _, r := range ended[:n] {
			delete(s.placements, r.Placement.ID)
		}
		ended = ended[n:]
	}
	var out []journalEntry
	for _, r := range append(ended, live...) {
		out = append(out, journalEntry{Placement: &r})
	}
	for _, p := range s.parked {
		out = append(out, journalEntry{Park: &p})
	}
	if s.draining {
		out = append(out, journalEntry{Drain: &s.draining})
	}
	return out
}

// Close gives the folder back.
func (j *Journal) Close() error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	var err error
	if j.file != nil {
		err = errors.Join(j.file.Sync(), j.file.Close())
		j.file = nil
	}
	return errors.Join(err, j.lock.Close())
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
