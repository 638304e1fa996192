package worker

import (
	"bytes"
	"io"
	"os"
	"strings"
)

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
