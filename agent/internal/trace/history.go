package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"warmd/placement"
)

const (
	fileSuffix  = ".trace.json"
	tempSuffix  = ".tmp"
	fileVersion = 1
	maxFile     = 1 << 20 // a trace of maxPhases phases is some 300 KB
)

// file is what is in a file.
type file struct {
	Version int             `json:"version"`
	Trace   placement.Trace `json:"trace"`
	// Open says that the start went on when this was written.
	Open bool `json:"open,omitempty"`
}

// history is the traces, one file each, the newest of them: those that have ended,
// and what is known so far of those that have not.
//
// Invariants:
//
//	items are sorted by name, which begins with the time
//	len(items) <= keep, the sum of their sizes <= maxBytes
//
// The keeper alone changes it; items only under the Recorder's mutex.
type history struct {
	dir      string
	keep     int
	maxBytes int64
	log      *slog.Logger
	items    []item
	failing  bool // the last write failed, and somebody was told
	writes   atomic.Int64
}

// item is one file: what it is looked up by. The trace itself stays on the disk, or
// hundreds of them would be a tenth of the agent's memory. One that cannot be read is
// nobody's, but counts.
type item struct {
	name      string
	size      int64
	placement string
	traceID   string
	open      bool             // by the file, nobody ended it
	held      *placement.Trace // in memory, when it could not be written
}

func openHistory(dir string, keep int, maxBytes int64, log *slog.Logger) (*history, error) {
	h := &history{dir: dir, keep: keep, maxBytes: maxBytes, log: log}
	if dir == "" {
		return h, nil
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("open trace history: %w", err)
	}
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("open trace history: %w", err)
	}
	for _, e := range entries {
		switch {
		case !e.Type().IsRegular():
		case strings.HasSuffix(e.Name(), fileSuffix+tempSuffix): // a crash left it
			os.Remove(filepath.Join(dir, e.Name()))
		case strings.HasSuffix(e.Name(), fileSuffix):
			if info, err := e.Info(); err == nil {
				h.items = append(h.items, item{name: e.Name(), size: info.Size()})
			}
		}
	}
	h.remove(h.trim())
	var bad []string
	for i := range h.items {
		it := &h.items[i]
		f, err := h.read(*it)
		if err != nil {
			bad = append(bad, fmt.Sprintf("%s (%v)", it.name, err))
		}
		it.placement, it.traceID, it.open = f.Trace.Placement, f.Trace.TraceID, f.Open
	}
	if len(bad) > 0 {
		log.Warn("traces that cannot be read are ignored", "dir", dir, "count", len(bad), "files", strings.Join(bad[:min(len(bad), 10)], ", "))
	}
	return h, nil
}

// read reads a file. It may be called without the mutex, by anybody.
func (h *history) read(it item) (f file, err error) {
	if it.size > maxFile {
		return f, fmt.Errorf("%d bytes long", it.size)
	}
	data, err := os.ReadFile(filepath.Join(h.dir, it.name))
	if err != nil {
		return f, errors.Unwrap(err)
	}
	switch err := json.Unmarshal(data, &f); {
	case err != nil:
		return file{}, err
	case f.Version != fileVersion:
		return file{}, fmt.Errorf("version %d", f.Version)
	case f.Trace.Placement == "":
		return file{}, errors.New("no placement")
	}
	if f.Trace.Phases == nil {
		f.Trace.Phases = []placement.Phase{}
	}
	return f, nil
}

// trace is an item's trace, false when it is gone or cannot be read. One that is open
// by its file and by nobody else was cut short.
func (h *history) trace(it item) (placement.Trace, bool) {
	if it.placement == "" {
		return placement.Trace{}, false
	}
	t := it.held
	if t == nil {
		f, err := h.read(it)
		if err != nil {
			return placement.Trace{}, false
		}
		t = &f.Trace
	}
	got := *t
	if it.open {
		got.Failed = interrupted
	}
	return got, true
}

// write puts a trace into its file, whole or not at all. It does not sync: that would
// compete with the journal, on which placements wait, and a trace that a power cut
// leaves torn is only ignored. A failure is told once, the trace stays in memory.
func (h *history) write(name string, t placement.Trace, open bool) item {
	h.writes.Add(1)
	data, err := json.Marshal(file{fileVersion, t, open})
	if err == nil && h.dir != "" {
		path := filepath.Join(h.dir, name)
		if err = os.WriteFile(path+tempSuffix, data, 0o640); err == nil {
			err = os.Rename(path+tempSuffix, path)
		}
		if err != nil {
			os.Remove(path + tempSuffix)
		}
	}
	if err != nil && !h.failing {
		h.log.Error("traces are kept in memory only", "err", err)
	} else if err == nil && h.failing {
		h.log.Info("traces are written again", "dir", h.dir)
	}
	h.failing = err != nil
	it := item{name: name, size: int64(len(data)), placement: t.Placement, traceID: t.TraceID, open: open}
	if err != nil || h.dir == "" {
		it.held = &t
	}
	return it
}

// add puts a trace in, or in the place of its older self, and returns the files
// that must go to keep the bounds.
func (h *history) add(it item) []string {
	i, found := slices.BinarySearchFunc(h.items, it.name, func(it item, name string) int { return strings.Compare(it.name, name) })
	if !found {
		h.items = slices.Insert(h.items, i, item{})
	}
	h.items[i] = it
	return h.trim()
}

func (h *history) trim() (gone []string) {
	total := int64(0)
	for _, it := range h.items {
		total += it.size
	}
	n := 0
	for n < len(h.items) && (len(h.items)-n > h.keep || total > h.maxBytes) {
		total -= h.items[n].size
		gone = append(gone, h.items[n].name)
		n++
	}
	h.items = slices.Delete(h.items, 0, n)
	return gone
}

func (h *history) remove(names []string) {
	for _, name := range names {
		if h.dir == "" {
			return
		}
		if err := os.Remove(filepath.Join(h.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			h.log.Warn("remove old trace", "err", err)
		}
	}
}
