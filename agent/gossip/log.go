package gossip

import (
	"context"
	"log"
	"log/slog"
	"strings"
)

// bridge turns memberlist's "[WARN] memberlist: text" lines into slog records.
func bridge(l *slog.Logger) *log.Logger { return log.New(logWriter{l}, "", 0) }

type logWriter struct{ log *slog.Logger }

var levels = map[string]slog.Level{
	// What memberlist calls an error or a warning is a peer's trouble or a lost
	// packet: everyday in a fleet, nothing for an operator to act on.
	"ERR": slog.LevelWarn, "ERROR": slog.LevelWarn, "WARN": slog.LevelInfo,
	"INFO": slog.LevelInfo, "DEBUG": slog.LevelDebug, "TRACE": slog.LevelDebug,
}

func (w logWriter) Write(p []byte) (int, error) {
	level, text := slog.LevelInfo, strings.TrimSpace(string(p))
	if rest, ok := strings.CutPrefix(text, "["); ok {
		if word, tail, ok := strings.Cut(rest, "]"); ok {
			if l, known := levels[word]; known {
				level, text = l, strings.TrimSpace(tail)
			}
		}
	}
	w.log.Log(context.Background(), level, strings.TrimPrefix(text, "memberlist: "))
	return len(p), nil
}
