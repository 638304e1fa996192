package worker

import (
	"bytes"
	"cmp"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// keptLogs bounds the logs of what has ended, per runtime: a zygote that cannot
// start makes one every half minute, a busy device one per placement.
const keptLogs = 200

func (r *Runtime) logDir() string           { return filepath.Join(r.cfg.LogDir, r.name) }
func (r *Runtime) logPath(id string) string { return filepath.Join(r.logDir(), id+".log") }
func zygoteLog(n int) string                { return "zygote." + strconv.Itoa(n) + ".log" }

func zygoteOfLog(name string) (n int, ok bool) {
	number, ok := strings.CutPrefix(strings.TrimSuffix(name, ".log"), "zygote.")
	n, err := strconv.Atoi(number)
	return n, ok && err == nil && n > 0 && zygoteLog(n) == name
}

// logInUse reports whether what writes a log may still run: then its folder is there.
func (r *Runtime) logInUse(name string) bool {
	for _, n := range r.generations() {
		if name == zygoteLog(n) {
			return true
		}
		if _, err := os.Stat(r.workerDir(n, strings.TrimSuffix(name, ".log"))); err == nil {
			return true
		}
	}
	return false
}

// pruneLogs removes the oldest logs of what has ended.
func (r *Runtime) pruneLogs() {
	type ended struct {
		name string
		at   time.Time
	}
	entries, err := os.ReadDir(r.logDir())
	if err != nil || len(entries) <= keptLogs {
		return
	}
	var old []ended
	for _, e := range entries {
		fi, err := e.Info()
		if err == nil && fi.Mode().IsRegular() && strings.HasSuffix(e.Name(), ".log") && !r.logInUse(e.Name()) {
			old = append(old, ended{e.Name(), fi.ModTime()})
		}
	}
	slices.SortFunc(old, func(a, b ended) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.name, b.name)) })
	for len(old) > keptLogs {
		if err := os.Remove(filepath.Join(r.logDir(), old[0].name)); err != nil && !os.IsNotExist(err) {
			r.log.Warn("old log not removed", "err", err)
		}
		old = old[1:]
	}
}

// maxTail bounds what is read of a log's end.
const maxTail = 64 << 10

// tail returns the last n lines of a file, as far as they lie within maxTail
// bytes; empty when there is none.
func tail(path string, n int) string {
	f, err := os.Open(path)
	if err != nil || n <= 0 {
		return ""
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > maxTail {
		_, _ = f.Seek(-maxTail, io.SeekEnd)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTail))
	if err != nil {
		return ""
	}
	lines := bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n"))
	lines = lines[max(0, len(lines)-n):]
	return strings.ToValidUTF8(string(bytes.Join(lines, []byte("\n"))), "?")
}
