package main

import (
	"fmt"
	"sync"
	"time"

	"warmd/placement"
)

// progress shows something under way: one line that is written over on a terminal,
// plain lines with --verbose, otherwise nothing.
type progress struct {
	con     console
	doing   string // "placing NAME"
	verbose bool
	tty     bool
	begin   time.Time

	mu   sync.Mutex // the ticker and the stream both draw
	text string
	done chan struct{}
	wait sync.WaitGroup
	once sync.Once
}

const redraw = 100 * time.Millisecond

// newProgress starts showing; stop ends it.
func (c console) newProgress(doing, first string, verbose bool) *progress {
	p := &progress{con: c, doing: doing, verbose: verbose, tty: c.ErrTTY && !verbose, begin: c.Now(), text: first, done: make(chan struct{})}
	if p.tty {
		p.wait.Go(p.tick)
	}
	return p
}

func (p *progress) tick() {
	t := time.NewTicker(redraw)
	defer t.Stop()
	for {
		p.draw()
		select {
		case <-p.done:
			return
		case <-t.C:
		}
	}
}

// line takes one line of the placement's stream.
func (p *progress) line(ev placement.Progress) {
	text := progressText(ev)
	if text == "" {
		return
	}
	if p.verbose {
		fmt.Fprintf(p.con.Err, "%9s  %s\n", orZero(seconds(ev.Elapsed)), printable(text))
	}
	p.mu.Lock()
	p.text = text
	p.mu.Unlock()
	if p.tty {
		p.draw()
	}
}

// note says something that is not in the stream.
func (p *progress) note(text string) {
	if p.verbose {
		fmt.Fprintf(p.con.Err, "%9s  %s\n", orZero(seconds(p.con.Now().Sub(p.begin).Seconds())), text)
	}
	p.mu.Lock()
	p.text = text
	p.mu.Unlock()
}

// draw writes over the line; it is cut to the terminal, because a wrapped line
// cannot be written over.
func (p *progress) draw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	line := fmt.Sprintf("%s: %s  %.1f s", p.doing, p.text, p.con.Now().Sub(p.begin).Seconds())
	fmt.Fprintf(p.con.Err, "\r\x1b[K%s", clip(printable(line), p.con.Width-1))
}

// result prints a line of the answer itself, above the one that is written over.
func (p *progress) result(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tty {
		fmt.Fprint(p.con.Err, "\r\x1b[K")
	}
	fmt.Fprintf(p.con.Out, format+"\n", args...)
}

// stop clears the line. It may be called many times.
func (p *progress) stop() {
	p.once.Do(func() {
		close(p.done)
		p.wait.Wait()
		if p.tty {
			fmt.Fprint(p.con.Err, "\r\x1b[K")
		}
	})
}

// progressText is one step in words.
func progressText(ev placement.Progress) string {
	with := func(s string) string {
		if ev.Message != "" {
			return s + ": " + ev.Message
		}
		return s
	}
	switch ev.Event {
	case placement.EventQueued:
		return with("waiting for a slot")
	case placement.EventAssigned:
		if p := ev.Placement; p != nil && p.Node != "" {
			return with("asking " + p.Node)
		}
		return with("a node is chosen")
	case placement.EventAccepted:
		if p := ev.Placement; p != nil && p.Node != "" {
			return with(fmt.Sprintf("loading on %s (%s)", p.Node, p.Tier))
		}
		return with("loading")
	case placement.EventPhase:
		if ev.Phase != nil {
			return fmt.Sprintf("%s (%s)", ev.Phase.Name, ev.Phase.Proc)
		}
	case placement.EventRetry:
		return with("trying another worker")
	case placement.EventReady:
		return "ready"
	case placement.EventFailed:
		return with("failed")
	case placement.EventReleased:
		return "released"
	}
	return ev.Message
}

func orZero(s string) string {
	if s == "" {
		return "0 s"
	}
	return s
}

// clip cuts a line to a width in runes.
func clip(s string, width int) string {
	r := []rune(s)
	if width < 1 || len(r) <= width {
		return s
	}
	return string(r[:width])
}
