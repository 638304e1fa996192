package systemd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"
)

const (
	journalSocket = "/run/systemd/journal/socket"
	fieldPrefix   = "WARMD_"
	maxField      = 64 // journald's limit for a name
)

// NewLogHandler is where a daemon logs: the journal's native protocol, with every
// attribute a field (`journalctl WARMD_DEVICE=GPU-...`), when stderr is a journal
// stream; text on stderr otherwise.
func NewLogHandler(stderr *os.File, level slog.Leveler) slog.Handler {
	text := slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})
	if ok, err := journal.StderrIsJournalStream(); !ok || err != nil {
		return text
	}
	h, err := newJournal(journalSocket, level, stderr)
	if err != nil {
		return text
	}
	return h
}

// journalHandler is a slog.Handler that speaks to journald.
type journalHandler struct {
	to    *journalConn
	level slog.Leveler
	// What WithAttrs and WithGroup have gathered so far.
	fields []byte // encoded
	words  string // " key=value", for people
	group  string // "a.b." before each key
}

// journalConn is shared by a handler and all made from it.
type journalConn struct {
	addr     *net.UnixAddr
	conn     *net.UnixConn
	name     string
	mu       sync.Mutex // of fallback
	fallback io.Writer
}

var _ slog.Handler = (*journalHandler)(nil)

func newJournal(socket string, level slog.Leveler, fallback io.Writer) (*journalHandler, error) {
	// Unconnected: journald may be restarted while we run.
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	to := &journalConn{addr: &net.UnixAddr{Name: socket, Net: "unixgram"}, conn: conn, name: filepath.Base(os.Args[0]), fallback: fallback}
	return &journalHandler{to: to, level: level}, nil
}

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	fields, words := bytes.NewBuffer(bytes.Clone(h.fields)), new(strings.Builder)
	words.WriteString(h.words)
	for _, a := range attrs {
		addAttr(fields, words, h.group, a)
	}
	c.fields, c.words = fields.Bytes(), words.String()
	return &c
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.group += name + "."
	return &c
}

// Handle sends one entry. A journal that cannot be reached gets the line on
// stderr: a log line is not lost because a log daemon is.
func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	fields, words := bytes.NewBuffer(bytes.Clone(h.fields)), new(strings.Builder)
	words.WriteString(r.Message)
	words.WriteString(h.words)
	r.Attrs(func(a slog.Attr) bool { addAttr(fields, words, h.group, a); return true })

	var b bytes.Buffer
	addField(&b, "MESSAGE", words.String())
	addField(&b, "PRIORITY", strconv.Itoa(int(priority(r.Level))))
	addField(&b, "SYSLOG_IDENTIFIER", h.to.name)
	if r.PC != 0 {
		f, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
		addField(&b, "CODE_FILE", f.File)
		addField(&b, "CODE_LINE", strconv.Itoa(f.Line))
		addField(&b, "CODE_FUNC", f.Function)
	}
	b.Write(fields.Bytes())
	err := h.to.send(b.Bytes())
	if err == nil {
		return nil
	}
	h.to.mu.Lock()
	defer h.to.mu.Unlock()
	_, e := fmt.Fprintf(h.to.fallback, "<%d>%s\n", priority(r.Level), strings.ReplaceAll(words.String(), "\n", `\n`))
	return e
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}

// send writes one datagram, or hands a sealed memory file over when that is too long.
func (c *journalConn) send(entry []byte) error {
	_, _, err := c.conn.WriteMsgUnix(entry, nil, c.addr)
	if !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "journal-entry")
	defer f.Close()
	if _, err := f.Write(entry); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL); err != nil {
		return err
	}
	_, _, err = c.conn.WriteMsgUnix(nil, unix.UnixRights(int(f.Fd())), c.addr)
	return err
}

// addAttr adds an attribute as a field and as words; groups become key prefixes.
func addAttr(fields *bytes.Buffer, words *strings.Builder, group string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, in := range v.Group() {
			addAttr(fields, words, group, in)
		}
		return
	}
	if a.Equal(slog.Attr{}) {
		return // slog's rule for handlers
	}
	key, val := group+a.Key, v.String()
	addField(fields, fieldName(key), val)
	if val == "" || strings.ContainsAny(val, " \"=\n\t") {
		val = strconv.Quote(val)
	}
	words.WriteString(" " + key + "=" + val)
}

// fieldName makes "a.some-key" WARMD_A_SOME_KEY: journald takes A-Z, 0-9 and _ only
// and drops other fields without a word.
func fieldName(key string) string {
	name := fieldPrefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
	return name[:min(len(name), maxField)]
}

// addField encodes one field: "K=V" for a line, else K, the length, and V.
func addField(b *bytes.Buffer, name, val string) {
	b.WriteString(name)
	if strings.Contains(val, "\n") {
		b.WriteByte('\n')
		b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(val))))
	} else {
		b.WriteByte('=')
	}
	b.WriteString(val)
	b.WriteByte('\n')
}
