package agent

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
	"warmd/systemd"
)

// serviceManager hears what a service tells systemd.
type serviceManager struct {
	t    *testing.T
	conn *net.UnixConn
}

// hear opens a notify socket and gives the node's agent to it.
func hear(t *testing.T, n *node) *serviceManager {
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	n.opt.Notifier = systemd.NewNotifier(slog.New(slog.DiscardHandler))
	return &serviceManager{t, conn}
}

// until returns the messages up to the first with a word in it.
func (m *serviceManager) until(word string) (all []string) {
	m.t.Helper()
	b := make([]byte, 4096)
	require.NoError(m.t, m.conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	for {
		n, err := m.conn.Read(b)
		require.NoError(m.t, err, "waiting for %q, heard %q", word, all)
		all = append(all, string(b[:n]))
		if strings.Contains(string(b[:n]), word) {
			return all
		}
	}
}

// slowPython is an interpreter that waits for a file before it runs.
func slowPython(t *testing.T, n *node) (python, gate string) {
	gate = filepath.Join(n.dir, "gate")
	python = filepath.Join(n.dir, "python")
	script := "#!/bin/sh\nuntil [ -e " + gate + " ]; do sleep 0.01; done\nexec python3 \"$@\"\n"
	require.NoError(t, os.WriteFile(python, []byte(script), 0o755))
	return python, gate
}

func TestReadyIsSaidWhenZygotesAreUpAndFiguresWhenTheyChange(t *testing.T) {
	n := newNode(t, nil)
	m := hear(t, n)
	python, gate := slowPython(t, n)
	n.opt.Manifests[0].Python = python
	opened := make(chan []string)
	go func() { // the node's start waits for its zygote
		heard := append(m.until("EXTEND_TIMEOUT_USEC=30000000"), m.until("STATUS=starting, waiting for toy; 1 device, 0 warm, 0 serving, 0 loading; toy starting")...)
		require.NoError(t, os.WriteFile(gate, nil, 0o600))
		opened <- heard
	}()
	n.start()
	require.NotContains(t, strings.Join(<-opened, "\n"), "READY=1", "a zygote that imports is not up")
	require.Equal(t, []string{"READY=1\nSTATUS=1 device, 0 warm, 0 serving, 0 loading; toy up"}, onlyLast(m.until("READY=1")))

	_, err := n.place("p1", 1, placement.Request{Model: "tiny"})
	require.NoError(t, err)
	m.until("STATUS=1 device, 0 warm, 1 serving, 0 loading; toy up")
	_, err = n.client.Release(t.Context(), "p1", 0)
	require.NoError(t, err)
	m.until("STATUS=1 device, 0 warm, 0 serving, 0 loading; toy up")
	require.NoError(t, n.stop())
	m.until("STOPPING=1\nSTATUS=ending; engines go on")
}

func onlyLast(all []string) []string { return all[len(all)-1:] }

func TestReadyIsAlsoSaidWhenAZygoteHasSaidWhyItIsNotUp(t *testing.T) {
	n := newNode(t, nil)
	m := hear(t, n)
	n.opt.Manifests[0].Python = "/bin/false"
	a, err := New(n.cfg, n.opt)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	ready := onlyLast(m.until("READY=1"))[0]
	require.Contains(t, ready, "; toy ")
	require.Contains(t, ready, "(zygote exited with code 1")
	cancel()
	require.NoError(t, <-done)
}

func TestAliveMeansThatEveryDeviceLoopAnswers(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.opt.Inventory = &twoGPUs{}
	n.start()
	require.NoError(t, n.agent.Alive(t.Context()))

	still, err := New(elsewhere(n.cfg, t.TempDir()), n.opt) // its loops do not run
	require.NoError(t, err)
	defer func() { require.NoError(t, still.close()) }()
	begin := time.Now()
	err = still.Alive(t.Context())
	require.ErrorContains(t, err, "the loop of device GPU-a does not answer")
	require.ErrorContains(t, err, "the loop of device GPU-b does not answer")
	require.Less(t, time.Since(begin), 2*loopTime, "all are asked at once")
}

// elsewhere is cfg with folders of its own.
func elsewhere(cfg Config, dir string) Config {
	cfg.DataDir, cfg.RunDir, cfg.LogDir, cfg.Socket = filepath.Join(dir, "d"), filepath.Join(dir, "r"), filepath.Join(dir, "l"), ""
	return cfg
}
