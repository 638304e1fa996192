package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Lines takes what a worker printed, a line at a time, with fields to find it by: the
// journal. An error means that it was not taken, and is to be offered again.
type Lines interface {
	Send(line string, fields map[string]string) error
}

// A worker's log file is the whole story and stays; with Lines its lines are copied as
// they come. How far that is lies beside the worker's record, so that the next agent
// goes on exactly there.
const (
	markFile   = "journal.offset"
	followStep = 250 * time.Millisecond
	followRead = 64 << 10        // at once; also the longest line
	lastWords  = 3 * time.Second // for what is left when the worker is dead
)

// follower copies one log. One goroutine uses it.
type follower struct {
	to     Lines
	path   string
	fields map[string]string
	mark   *os.File
	offset int64
}

// newFollower goes on where the mark in a worker's folder says.
func newFollower(to Lines, dir string, rec Record) (*follower, error) {
	mark, err := os.OpenFile(filepath.Join(dir, markFile), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("follow log: %w", err)
	}
	f := &follower{to: to, path: rec.Log, mark: mark, fields: map[string]string{
		"placement": rec.Placement, "worker": rec.ID, "device": rec.Device, "runtime": rec.Runtime,
	}}
	b, _ := io.ReadAll(io.LimitReader(mark, 32))
	f.offset, _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return f, nil
}

// copy sends the whole lines that are there, one buffer of them: an engine that prints
// without end must not flood the journal. With last it sends everything, for as long
// as lastWords.
func (f *follower) copy(last bool) error {
	log, err := os.Open(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // not yet, or not any more
	} else if err != nil {
		return fmt.Errorf("follow log: %w", err)
	}
	defer log.Close()
	if fi, err := log.Stat(); err != nil || fi.Size() < f.offset {
		f.offset = 0 // it was cut
	}
	buf := make([]byte, followRead)
	for began := time.Now(); ; {
		n, err := log.ReadAt(buf, f.offset)
		if n == 0 || err != nil && !errors.Is(err, io.EOF) {
			return nil //nolint:nilerr // looked at again in a moment
		}
		rest := buf[:n]
		for len(rest) > 0 {
			line, more, whole := bytes.Cut(rest, []byte("\n"))
			if !whole && !last && n < len(buf) {
				return nil // it is being written
			}
			if !whole && len(rest) < n {
				break // read on from its beginning
			}
			if err := f.send(line, len(rest)-len(more)); err != nil {
				return err
			}
			rest = more
		}
		if !last || time.Since(began) > lastWords {
			return nil
		}
	}
}

// send offers one line and notes that it is done with.
func (f *follower) send(line []byte, size int) error {
	if i := bytes.LastIndexByte(bytes.TrimRight(line, "\r"), '\r'); i >= 0 {
		line = line[i+1:] // a progress bar draws over itself: what it said last
	}
	if text := strings.TrimRight(strings.ToValidUTF8(string(line), "?"), " \r\t"); text != "" {
		if err := f.to.Send(text, f.fields); err != nil {
			return fmt.Errorf("follow log: %w", err)
		}
	}
	f.offset += int64(size)
	if _, err := f.mark.WriteAt(fmt.Appendf(nil, "%020d\n", f.offset), 0); err != nil {
		return fmt.Errorf("follow log: %w", err)
	}
	return nil
}

func (f *follower) close() { _ = f.mark.Close() }

// follow copies the log until over is closed, then what is left of it, for a bounded
// time. When ctx ends it stops where it is.
func (w *Worker) follow(ctx context.Context, rec Record, over <-chan struct{}) {
	defer w.post(func() { w.followed = true })
	f, err := newFollower(w.rt.cfg.Lines, w.dir(), rec)
	if err != nil {
		w.rt.log.Warn("log is not copied to the journal", "worker", w.id, "err", err)
		return
	}
	defer f.close()
	tick := time.NewTicker(followStep)
	defer tick.Stop()
	var said sync.Once
	for {
		if err := f.copy(false); err != nil {
			said.Do(func() { w.rt.log.Warn("log is not copied to the journal at the moment", "worker", w.id, "err", err) })
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-over:
			for end := time.Now().Add(lastWords); f.copy(true) != nil && ctx.Err() == nil && time.Now().Before(end); {
				pause(ctx, followStep)
			}
			return
		}
	}
}

// tellLastWords copies what workers printed that died while no agent was there.
func (r *Runtime) tellLastWords(ctx context.Context, n int) {
	if r.cfg.Lines == nil {
		return
	}
	for _, rec := range r.onDisk(ctx, n) {
		if rec.Placement == "" || rec.Boot != bootID() || len(rec.living()) > 0 {
			continue
		}
		f, err := newFollower(r.cfg.Lines, r.workerDir(n, rec.ID), rec)
		if err == nil {
			err = f.copy(true)
			f.close()
		}
		if err != nil {
			r.log.Warn("last words of a worker are not in the journal", "worker", rec.ID, "log", rec.Log, "err", err)
		}
	}
}
