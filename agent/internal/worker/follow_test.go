package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// paper is a journal that outlives agents, and can be full.
type paper struct {
	mu    sync.Mutex
	lines []string
	last  map[string]string
	full  bool
}

func (p *paper) Send(line string, fields map[string]string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.full {
		return errors.New("no space")
	}
	p.lines, p.last = append(p.lines, line), fields
	return nil
}

func (p *paper) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "|")
}

func (p *paper) setFull(full bool) { p.mu.Lock(); defer p.mu.Unlock(); p.full = full }

func (p *paper) eventually(t *testing.T, want string) {
	t.Helper()
	require.Eventually(t, func() bool { return p.text() == want }, 20*time.Second, 5*time.Millisecond, "%s", want)
}

// press is a worker that prints what a test writes.
type press struct {
	*host
	paper *paper
	in    string
}

func newPress(t *testing.T) *press {
	p := &press{host: execHost(t), paper: &paper{}}
	p.in = filepath.Join(p.dir, "in")
	p.print(t, "")
	return p
}

func (p *press) print(t *testing.T, text string) {
	f, err := os.OpenFile(p.in, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString(text)
	require.NoError(t, err)
}

func (p *press) agent() (*Runtime, func()) {
	r := p.new()
	r.cfg.Lines = p.paper
	return r, p.run(r)
}

func (p *press) spawn(t *testing.T, r *Runtime) *Worker {
	w, err := r.Spawn(within(t, 20*time.Second), SpawnSpec{
		ID: "w1", Argv: []string{"tail", "-s", "0.01", "-n", "+1", "-f", p.in}, Env: p.manifest.Environ(), Device: "cpu-0", Placement: "p1", Attempt: 1,
	})
	require.NoError(t, err)
	require.NoError(t, w.Served())
	return w
}

func TestLinesOfAWorkerAreNeitherLostNorRepeatedOverAgents(t *testing.T) {
	p := newPress(t)
	r, stop := p.agent()
	w := p.spawn(t, r)
	p.print(t, "one\n\ntwo \xff\n10%\r50%\r100%\r\nthree")
	p.paper.eventually(t, "one|two ?|100%")
	require.Equal(t, map[string]string{"placement": "p1", "worker": "w1", "device": "cpu-0", "runtime": "exec"}, p.paper.last)
	rec := w.Record()
	stop()
	p.print(t, " and a half\nfour\n")
	waitFor(t, func() bool { return strings.HasSuffix(tail(rec.Log, 1), "four") })
	require.Equal(t, "one|two ?|100%", p.paper.text(), "nobody was there")

	for i := range 3 { // agents come and go while it prints
		r, stop = p.agent()
		_, err := r.Adopt(soon(t), rec)
		require.NoError(t, err)
		p.print(t, fmt.Sprintf("agent %d\n", i))
		stop()
	}
	r, _ = p.agent()
	w, err := r.Adopt(soon(t), rec)
	require.NoError(t, err)
	want := "one|two ?|100%|three and a half|four|agent 0|agent 1|agent 2"
	p.paper.eventually(t, want)

	p.paper.setFull(true)
	p.print(t, "five\nsix\n")
	waitFor(t, func() bool { return strings.HasSuffix(w.LogTail(1), "six") })
	p.paper.setFull(false)
	p.paper.eventually(t, want+"|five|six")

	p.print(t, "last words, cut off")
	waitFor(t, func() bool { return strings.HasSuffix(w.LogTail(1), "off") })
	require.NoError(t, w.Stop(soon(t), 0))
	require.Equal(t, want+"|five|six|last words, cut off", p.paper.text(), "told when the worker is gone, not later")
}

func TestLastWordsOfAWorkerThatDiedWithNoAgentThereAreToldByTheNext(t *testing.T) {
	p := newPress(t)
	r, stop := p.agent()
	w := p.spawn(t, r)
	p.print(t, "one\n")
	p.paper.eventually(t, "one")
	rec := w.Record()
	stop()
	p.print(t, "ERROR no memory\n")
	waitFor(t, func() bool { return strings.HasSuffix(tail(rec.Log, 1), "memory") })
	require.NoError(t, rec.Engine.Signal(syscall.SIGKILL))
	require.True(t, awaitAll(soon(t), []Proc{rec.Engine}, 10*time.Second))
	for range 2 {
		r, stop = p.agent()
		_, err := r.Found(soon(t))
		require.NoError(t, err)
		require.Equal(t, "one|ERROR no memory", p.paper.text(), "once")
		stop()
	}
}

func TestParkedWorkersLinesAreNobodysUntilItIsPlaced(t *testing.T) {
	h, paper := fakeHost(t), &paper{}
	r := h.new()
	r.cfg.Lines = paper
	h.run(r)
	w := h.fork(r, "w1")
	require.NoError(t, os.WriteFile(w.log, []byte("while parked\n"), 0o600))
	require.NoFileExists(t, filepath.Join(w.dir(), markFile))
	serve(t, w, "p1")
	require.Eventually(t, func() bool { return strings.HasPrefix(paper.text(), "while parked") }, 10*time.Second, 5*time.Millisecond, "its start is the placement's")
	require.Equal(t, "cpu-0", paper.last["device"])
	require.NoError(t, w.Stop(soon(t), 0))
}

func TestLineLongerThanTheBufferComesInPieces(t *testing.T) {
	dir := t.TempDir()
	paper := &paper{}
	rec := Record{ID: "w1", Log: filepath.Join(dir, "log")}
	require.NoError(t, os.WriteFile(rec.Log, []byte("a\n"+strings.Repeat("x", followRead+100)+"\nb\n"), 0o600))
	f, err := newFollower(paper, dir, rec)
	require.NoError(t, err)
	defer f.close()
	for range 3 {
		require.NoError(t, f.copy(false), "a buffer at a time")
	}
	require.Equal(t, "a|"+strings.Repeat("x", followRead)+"|"+strings.Repeat("x", 100)+"|b", paper.text())
	require.NoError(t, os.WriteFile(rec.Log, []byte("new\n"), 0o600))
	require.NoError(t, f.copy(false))
	require.True(t, strings.HasSuffix(paper.text(), "|b|new"), "a log that was cut is read from its beginning")
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 20*time.Second, 5*time.Millisecond)
}
