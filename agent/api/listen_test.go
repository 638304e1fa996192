package api

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/agent/api/access"
)

func TestSocketFileOfADeadServerIsTakenOverAndNothingElseIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "a.sock")
	listen := func() ([]net.Listener, error) { return Listen(nil, path, nil, access.Files{}) }
	first, err := listen()
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o660), info.Mode().Perm())
	_, err = listen()
	require.EqualError(t, err, "listen: on "+path+": another server answers there")

	first[0].(*net.UnixListener).SetUnlinkOnClose(false) // as one that is killed
	require.NoError(t, first[0].Close())
	second, err := listen()
	require.NoError(t, err)
	require.NoError(t, second[0].Close())

	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = listen()
	require.ErrorContains(t, err, "is not a socket: move it away")
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(kept))
}

func TestAddressThatCannotBeListenedOnLeavesNoneOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	_, err = Listen(nil, path, []string{taken.Addr().String()}, access.Files{})
	require.ErrorContains(t, err, "listen: on "+taken.Addr().String())
	require.ErrorContains(t, err, "ss -ltnp")
	assert.NoFileExists(t, path)

	_, err = Listen(nil, path, []string{"0.0.0.0:0"}, access.Files{})
	require.ErrorContains(t, err, "can be reached from other hosts")
	assert.NoFileExists(t, path)
	own, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	got, err := Listen([]net.Listener{own}, path, []string{"127.0.0.1:0"}, access.Files{})
	require.NoError(t, err)
	assert.Equal(t, []net.Listener{own}, got, "what was given is used, and nothing else")
	require.NoError(t, own.Close())
}
