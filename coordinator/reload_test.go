package coordinator

import (
	"bytes"
	"encoding/base64"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// keyedView is a view with keys.
type keyedView struct {
	View
	keys [][]byte
}

func (v *keyedView) SetKeys(keys [][]byte) error { v.keys = keys; return nil }

func TestAReloadChangesWhatCanChangeAndNamesWhatCannot(t *testing.T) {
	var out bytes.Buffer
	view, level := &keyedView{}, new(slog.LevelVar)
	cfg := DefaultConfig()
	c, err := New(cfg, Options{View: view, Level: level, Logger: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.election.Client.Close() })

	key, next := bytes.Repeat([]byte{7}, 32), cfg
	next.LogLevel, next.MaxQueue = "debug", 7
	next.Gossip.KeysFile = filepath.Join(t.TempDir(), "keys")
	require.NoError(t, os.WriteFile(next.Gossip.KeysFile, []byte(base64.StdEncoding.EncodeToString(key)), 0o600))
	require.NoError(t, c.Reload(next))
	assert.Equal(t, [][]byte{key}, view.keys)
	assert.Equal(t, slog.LevelDebug, level.Level())
	assert.Contains(t, out.String(), `changed="[log_level gossip.keys_file]"`)
	assert.Contains(t, out.String(), `msg="needs a restart" keys=[max_queue]`)

	for want, spoil := range map[string]func(*Config){
		"max_queue 0":                      func(c *Config) { c.MaxQueue = 0 },
		"gossip.keys_file cannot be read:": func(c *Config) { c.Gossip.KeysFile = "/nonexistent/keys" },
	} {
		bad := next
		bad.LogLevel = "error"
		spoil(&bad)
		require.ErrorContains(t, c.Reload(bad), want)
		assert.Equal(t, [][]byte{key}, view.keys, "nothing has changed")
		assert.Equal(t, slog.LevelDebug, level.Level())
	}
}
