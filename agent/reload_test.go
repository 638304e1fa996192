package agent

import (
	"bytes"
	"encoding/base64"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"warmd/agent/internal/gpu"
	"warmd/placement"
)

// keyed is a gossip with keys.
type keyed struct {
	told
	keys [][]byte
	err  error
}

func (k *keyed) SetKeys(keys [][]byte) error {
	if k.err == nil {
		k.keys = keys
	}
	return k.err
}

// said is a log that can be read while it is written.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) { s.mu.Lock(); defer s.mu.Unlock(); return s.text.Write(b) }
func (s *said) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.text.Reset()
	return s.text.String()
}

func TestAReloadChangesWhatCanChangeAndNamesWhatCannot(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	gossip, out, level := &keyed{}, &said{}, new(slog.LevelVar)
	n.opt.Gossip, n.opt.Level = gossip, level
	n.opt.Logger = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	n.start()
	other := filepath.Join(n.dir, "others", "small")
	require.NoError(t, os.MkdirAll(other, 0o755))
	_, err := n.place("p-1", 1, placement.Request{Model: other})
	require.Equal(t, placement.CodeModelNotFound, placement.AsError(err).Code)
	out.take()

	cfg := n.cfg
	cfg.ModelRoots = append(slices.Clone(cfg.ModelRoots), filepath.Join(n.dir, "others"))
	cfg.LogLevel, cfg.EndpointPorts = "warn", "40000-40100"
	cfg.Gossip.Listen, cfg.Gossip.KeysFile = "127.0.0.1:1", filepath.Join(n.dir, "keys")
	key := bytes.Repeat([]byte{7}, 32)
	require.NoError(t, os.WriteFile(cfg.Gossip.KeysFile, []byte(base64.StdEncoding.EncodeToString(key)), 0o600))
	require.NoError(t, n.agent.Reload(cfg))
	require.Equal(t, [][]byte{key}, gossip.keys)
	require.Equal(t, slog.LevelWarn, level.Level())
	text := out.take()
	require.NotContains(t, text, "configuration read again", "the new level counts for it, too")
	require.Contains(t, text, `msg="needs a restart" keys="[endpoint_ports gossip.listen]"`)
	last, err := n.place("p-2", 1, placement.Request{Model: other})
	require.NoError(t, err)
	require.Equal(t, placement.EventReady, last.Event, "%+v", last.Error)

	back := n.cfg
	back.Devices = map[string]DeviceConfig{gpu.CPUDevice: {Slots: 2, Warm: map[string]int{"toy": 1}}}
	require.NoError(t, n.agent.Reload(back))
	text = out.take()
	require.Contains(t, text, `msg="configuration read again" changed="[model_roots devices.cpu-0.warm log_level gossip.keys_file]"`)
	require.NotContains(t, text, "needs a restart")
	p, err := n.client.Placement(t.Context(), "p-2")
	require.NoError(t, err)
	require.Equal(t, placement.Ready, p.State, "what was accepted goes on")
}

func TestAnInvalidConfigurationChangesNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	gossip := &keyed{}
	n.opt.Gossip = gossip
	n.start()
	before := n.agent.live.Load()
	for want, spoil := range map[string]func(*Config){
		"model_roots[0]":   func(c *Config) { c.ModelRoots = []string{"relative"} },
		"gossip.keys_file": func(c *Config) { c.Gossip.KeysFile = "/nonexistent/keys" },
		"begins with keys": func(*Config) { gossip.err = placement.Errorf(placement.CodeInternal, "a fleet begins with keys") },
	} {
		cfg := n.cfg
		cfg.AllowArgs = []string{"--trust-remote-code"}
		gossip.err = nil
		spoil(&cfg)
		require.ErrorContains(t, n.agent.Reload(cfg), want)
		require.Same(t, before, n.agent.live.Load())
		require.Empty(t, gossip.keys)
	}
}
