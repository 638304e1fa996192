package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"time"

	"warmd/agent/api"
	"warmd/agent/internal/device"
	"warmd/placement"
)

// Bounds of a log answer.
const (
	maxTail     = 100000
	tailWindow  = 4 << 20 // bytes at the end of the file that are searched for the tail
	pollLog     = 250 * time.Millisecond
	logDeadline = 10 * time.Second // a client that does not read is dropped
)

// getLogs sends the log of a placement's worker: ?tail=N lines, ?follow=1.
func (a *Agent) getLogs(w http.ResponseWriter, r *http.Request) {
	tail, err := number(r, "tail", 1000, 0, maxTail)
	if err != nil {
		api.WriteError(w, err)
		return
	}
	e := a.book.Get(r.PathValue("id"))
	if e == nil {
		api.WriteError(w, a.unknown(r.PathValue("id")))
		return
	}
	path := logPath(e)
	if path == "" {
		api.WriteError(w, placement.Errorf(placement.CodeNotFound, "placement %s has no worker yet, so no log", e.ID))
		return
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		api.WriteError(w, placement.Errorf(placement.CodeNotFound, "the log %s of placement %s is not there any more", path, e.ID))
		return
	}
	if err != nil {
		api.WriteError(w, err)
		return
	}
	defer f.Close()
	if err := seekTail(f, int(tail)); err != nil {
		api.WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	sendLog(w, r, f, e)
}

// sendLog copies what is there and, when asked to follow, what comes, until the
// client goes away or the placement is over.
func sendLog(w http.ResponseWriter, r *http.Request, f *os.File, e *device.Entry) {
	rc := http.NewResponseController(w)
	api.Patient(w)
	follow := r.URL.Query().Get("follow") != ""
	t := time.NewTicker(pollLog)
	defer t.Stop()
	over := e.Done()
	for {
		_ = rc.SetWriteDeadline(time.Now().Add(logDeadline))
		if _, err := io.Copy(w, f); err != nil || rc.Flush() != nil || !follow {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-over:
			follow = false // one last look
		case <-t.C:
		}
	}
}

// logPath is where the worker of a placement logs, also when it is gone.
func logPath(e *device.Entry) string {
	var rec struct {
		Log string `json:"log"`
	}
	_ = json.Unmarshal(e.Record().WorkerRecord, &rec) // empty when there is no worker
	return rec.Log
}

// seekTail moves to the beginning of the last n lines.
func seekTail(f *os.File, n int) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	from := max(size-tailWindow, 0)
	b := make([]byte, size-from)
	if _, err := f.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	end := len(b)
	if end > 0 && b[end-1] == '\n' {
		end--
	}
	start := len(b)
	for ; n > 0 && start > 0; n-- {
		i := bytes.LastIndexByte(b[:end], '\n')
		start, end = i+1, i
		if i < 0 {
			start = 0
			break
		}
	}
	_, err = f.Seek(from+int64(start), io.SeekStart)
	return err
}
