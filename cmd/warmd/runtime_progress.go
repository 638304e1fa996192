package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"warmd/agent/runtime"
)

// stepProgress shows the steps of something that takes minutes. On a terminal each
// phase has one line, whose clock runs while nothing is said; elsewhere each step
// is a plain line.
type stepProgress struct {
	w     io.Writer
	tty   bool
	width int
	began time.Time
	stop  chan struct{}
	done  sync.WaitGroup
	mu    sync.Mutex
	last  runtime.Step
}

// newProgress starts the clock; end stops it.
func newProgress(w io.Writer) *stepProgress {
	p := &stepProgress{w: w, began: time.Now(), stop: make(chan struct{}), width: 80}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.tty = true
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 20 {
			p.width = n
		}
		p.done.Add(1)
		go p.tick()
	}
	return p
}

func (p *stepProgress) tick() {
	defer p.done.Done()
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		}
	}
}

func (p *stepProgress) step(s runtime.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	word := s.Phase
	if s.Warning {
		word = "warning"
	}
	if !p.tty {
		fmt.Fprintf(p.w, "%6.1fs  %-9s %s\n", s.Elapsed.Seconds(), word, s.Message)
		return
	}
	if s.Warning {
		fmt.Fprintf(p.w, "\r\033[K%s: %s\n", word, s.Message)
		return
	}
	if p.last.Phase != "" && p.last.Phase != s.Phase {
		p.draw()
		fmt.Fprintln(p.w)
	}
	p.last = s
	p.draw()
}

// draw rewrites the line of the running phase. It never wraps: a wrapped line
// could not be rewritten.
func (p *stepProgress) draw() {
	if p.last.Phase == "" {
		return
	}
	line := fmt.Sprintf("%5.0fs  %-9s %s", time.Since(p.began).Seconds(), p.last.Phase, strings.ReplaceAll(p.last.Message, "\n", " "))
	if r := []rune(line); len(r) >= p.width {
		line = string(r[:p.width-4]) + "..."
	}
	fmt.Fprintf(p.w, "\r\033[K%s", line)
}

func (p *stepProgress) end() {
	close(p.stop)
	p.done.Wait()
	if p.tty && p.last.Phase != "" {
		fmt.Fprintln(p.w)
	}
}
