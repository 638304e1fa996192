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
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// journald is a socket that reads entries as the journal does.
type journald struct {
	t    *testing.T
	conn *net.UnixConn
}

func newJournald(t *testing.T) (*journald, string) {
	path := filepath.Join(t.TempDir(), "socket")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return &journald{t, conn}, path
}

func (j *journald) entry() map[string]string {
	j.t.Helper()
	require.NoError(j.t, j.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	b, oob := make([]byte, 1<<20), make([]byte, 64)
	n, oobn, _, _, err := j.conn.ReadMsgUnix(b, oob)
	require.NoError(j.t, err)
	data := b[:n]
	if oobn > 0 {
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		require.NoError(j.t, err)
		fds, err := unix.ParseUnixRights(&msgs[0])
		require.NoError(j.t, err)
		f := os.NewFile(uintptr(fds[0]), "entry")
		defer f.Close()
		_, err = f.Seek(0, io.SeekStart)
		require.NoError(j.t, err)
		data, err = io.ReadAll(f)
		require.NoError(j.t, err)
		_, err = f.WriteAt([]byte("x"), 0)
		require.Error(j.t, err, "the journal refuses a file that could still change")
	}
	return parse(j.t, data)
}

func parse(t *testing.T, data []byte) map[string]string {
	out := map[string]string{}
	for len(data) > 0 {
		i := bytes.IndexAny(data, "=\n")
		require.GreaterOrEqual(t, i, 0)
		name := string(data[:i])
		var val []byte
		if data[i] == '=' {
			val, data, _ = bytes.Cut(data[i+1:], []byte("\n"))
		} else {
			n := binary.LittleEndian.Uint64(data[i+1:])
			val, data = data[i+9:i+9+int(n)], data[i+9+int(n)+1:]
		}
		out[name] = string(val)
	}
	return out
}

func journalLog(t *testing.T, level slog.Level) (*journald, *slog.Logger, *bytes.Buffer) {
	j, path := newJournald(t)
	var stderr bytes.Buffer
	h, err := newJournal(path, level, &stderr)
	require.NoError(t, err)
	t.Cleanup(func() { h.to.conn.Close() })
	return j, slog.New(h), &stderr
}

func TestAttributesAreJournalFields(t *testing.T) {
	j, log, _ := journalLog(t, slog.LevelInfo)
	log = log.With("node", "n1", slog.Group("g", "x", 1)).WithGroup("req").With("id", "r 1")
	//nolint:sloglint // both forms must come through
	log.Warn("claim refused", "device", "GPU-0", "err", errors.New("no\nroom"), slog.Group("", "inline", true), slog.Attr{}, "took", time.Second, "weird-key.é", "v")
	e := j.entry()
	assert.Equal(t, map[string]string{
		"MESSAGE":  `claim refused node=n1 g.x=1 req.id="r 1" req.device=GPU-0 req.err="no\nroom" req.inline=true req.took=1s req.weird-key.é=v`,
		"PRIORITY": "4", "SYSLOG_IDENTIFIER": filepath.Base(os.Args[0]),
		"WARMD_NODE": "n1", "WARMD_G_X": "1", "WARMD_REQ_ID": "r 1", "WARMD_REQ_DEVICE": "GPU-0", "WARMD_REQ_ERR": "no\nroom",
		"WARMD_REQ_INLINE": "true", "WARMD_REQ_TOOK": "1s", "WARMD_REQ_WEIRD_KEY__": "v",
		"CODE_FILE": e["CODE_FILE"], "CODE_LINE": e["CODE_LINE"], "CODE_FUNC": "warmd/systemd.TestAttributesAreJournalFields",
	}, e)
	assert.True(t, strings.HasSuffix(e["CODE_FILE"], "journal_test.go"))
}

func TestLevelsBecomePriorities(t *testing.T) {
	j, log, _ := journalLog(t, slog.LevelDebug)
	for level, want := range map[slog.Level]string{slog.LevelDebug: "7", slog.LevelInfo: "6", slog.LevelWarn: "4", slog.LevelError: "3", slog.LevelError + 4: "3"} {
		log.Log(context.Background(), level, "x")
		assert.Equal(t, want, j.entry()["PRIORITY"])
	}
	_, log, _ = journalLog(t, slog.LevelWarn)
	assert.False(t, log.Enabled(context.Background(), slog.LevelInfo))
}

func TestHandlersMadeFromOneDoNotShareAttributes(t *testing.T) {
	j, log, _ := journalLog(t, slog.LevelInfo)
	base := log.With("a", 1)
	x, y := base.With("x", 1), base.With("y", 2)
	x.Info("m")
	assert.Equal(t, "m a=1 x=1", j.entry()["MESSAGE"])
	y.Info("m")
	assert.Equal(t, "m a=1 y=2", j.entry()["MESSAGE"])
	base.WithGroup("").Info("m")
	assert.Equal(t, "m a=1", j.entry()["MESSAGE"])
}

func TestEntryTooLongForADatagramGoesAsASealedFile(t *testing.T) {
	j, log, stderr := journalLog(t, slog.LevelInfo)
	long := strings.Repeat("last log lines of a dead engine\n", 20000)
	log.Error("engine died", "detail", long)
	assert.Equal(t, long, j.entry()["WARMD_DETAIL"])
	assert.Empty(t, stderr.String())
}

func TestLineIsNotLostWhenTheJournalIsGone(t *testing.T) {
	j, log, stderr := journalLog(t, slog.LevelInfo)
	require.NoError(t, j.conn.Close())
	log.With("a", 1).Error("two\nlines", "b", "c")
	assert.Equal(t, "<3>two\\nlines a=1 b=c\n", stderr.String())
}

func TestLogGoesToStderrAsTextUnlessThatIsTheJournal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	require.NoError(t, err)
	defer f.Close()
	for _, stream := range []string{"", "junk", "1:2"} {
		t.Setenv("JOURNAL_STREAM", stream)
		slog.New(NewLogHandler(f, slog.LevelInfo)).Info("hello", "stream", stream)
	}
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(2, &st))
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	h := NewLogHandler(f, slog.LevelInfo)
	require.IsType(t, &journalHandler{}, h)
	h.(*journalHandler).to.conn.Close()
	data, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	assert.Equal(t, 3, strings.Count(string(data), "msg=hello"))
}

func TestFieldNamesAreThoseThatTheJournalTakes(t *testing.T) {
	assert.Equal(t, "WARMD_AGENT_DEVICE_2", fieldName("agent.device 2"))
	assert.Len(t, fieldName(strings.Repeat("k", 200)), maxField)
}

func TestLinesOfOthersComeUnderTheirNameWithTheirFields(t *testing.T) {
	j, path := newJournald(t)
	l, err := newLines(path, "warmd-engine")
	require.NoError(t, err)
	t.Cleanup(func() { l.to.conn.Close() })
	for line, priority := range map[string]string{
		"INFO 11-25 17:00:00 [core.py:1] ready":                           "6",
		"(EngineCore_0 pid=7) ERROR 11-25 17:00:00 [core.py:9] no memory": "3",
		"WARNING: slow":           "6",
		"WARNING 11-25 slow":      "4",
		"Traceback (most recent)": "6",
	} {
		require.NoError(t, l.Send(line, map[string]string{"placement": "p-1", "device": "GPU-0"}))
		assert.Equal(t, map[string]string{
			"MESSAGE": line, "PRIORITY": priority, "SYSLOG_IDENTIFIER": "warmd-engine", "WARMD_PLACEMENT": "p-1", "WARMD_DEVICE": "GPU-0",
		}, j.entry())
	}
	require.NoError(t, j.conn.Close())
	require.Error(t, l.Send("x", nil), "the caller keeps it")
}

func TestLinesAreOffWhereStderrIsNoJournal(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "")
	require.Nil(t, NewLines("x"))
}
