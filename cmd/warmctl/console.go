package main

import (
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"
)

// console is everything of the outside that a command may touch besides the
// servers: tests replace it, so that every line of output is reproducible.
type console struct {
	Out, Err io.Writer
	Getenv   func(string) string
	Now      func() time.Time
	// Width is the number of columns behind Out.
	Width int
	// OutTTY and ErrTTY say whether a person looks at the stream.
	OutTTY, ErrTTY bool
	// Poll is the pause between two looks of a command that waits (drain),
	// and between two tries to follow a placement again.
	Poll time.Duration
	// Host is the root of the file system that doctor looks at.
	Host string
}

const defaultWidth = 80

// system is the console of a real process.
func system() console {
	c := console{
		Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Now: time.Now, Width: defaultWidth,
		OutTTY: term.IsTerminal(int(os.Stdout.Fd())), ErrTTY: term.IsTerminal(int(os.Stderr.Fd())),
		Poll: 500 * time.Millisecond, Host: "/",
	}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		c.Width = n
	} else if w, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil && w > 0 {
		c.Width = w
	}
	return c
}

// utf8 reports whether the locale can show more than ASCII: the first of LC_ALL,
// LC_CTYPE and LANG that is set decides, as in the C library.
func (c console) utf8() bool {
	for _, key := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(c.Getenv(key)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}
