package systemd

import (
	"bytes"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// Lines writes what somebody else printed into the journal, under the name of that and
// with fields to find it by. Unlike a logger it has no fallback: what the journal did
// not take is an error, for the caller has it and can send it again.
type Lines struct {
	to  *journalConn
	who string
}

// sendTime bounds the wait for a journal that is stuck.
const sendTime = 2 * time.Second

// NewLines is nil when stderr is no journal stream: nobody would look there. Call it
// before ScrubSelf.
func NewLines(who string) *Lines {
	if ok, err := journal.StderrIsJournalStream(); !ok || err != nil {
		return nil
	}
	l, err := newLines(journalSocket, who)
	if err != nil {
		return nil
	}
	return l
}

func newLines(socket, who string) (*Lines, error) {
	h, err := newJournal(socket, nil, os.Stderr)
	if err != nil {
		return nil, err
	}
	return &Lines{to: h.to, who: who}, nil
}

// Send writes one line with its fields; names are as in [NewLogHandler], "placement"
// becomes WARMD_PLACEMENT. One goroutine after the other.
func (l *Lines) Send(line string, fields map[string]string) error {
	var b bytes.Buffer
	addField(&b, "MESSAGE", line)
	addField(&b, "PRIORITY", strconv.Itoa(int(linePriority(line))))
	addField(&b, "SYSLOG_IDENTIFIER", l.who)
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		addField(&b, fieldName(k), fields[k])
	}
	if err := l.to.conn.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	return l.to.send(b.Bytes())
}

// linePriority reads the level that Python's loggers put near the beginning of a line.
func linePriority(line string) journal.Priority {
	head := []byte(line[:min(len(line), 80)])
	switch {
	case bytes.Contains(head, []byte("CRITICAL ")), bytes.Contains(head, []byte("ERROR ")):
		return journal.PriErr
	case bytes.Contains(head, []byte("WARNING ")):
		return journal.PriWarning
	case bytes.Contains(head, []byte("DEBUG ")):
		return journal.PriDebug
	}
	return journal.PriInfo
}
