package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"warmd/agent/internal/device"
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

// Put stores a placement's record.
func (j *Journal) Put(r *device.Record, durable bool) error {
	return j.add(journalEntry{Placement: r}, durable)
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
