package runtime

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// asEngines lets nobody stand for the engines' user. Only root can give files away.
func asEngines(t *testing.T) {
	if os.Geteuid() != 0 && testing.Short() {
		t.Skip("needs root")
	}
	require.Zero(t, os.Geteuid(), "run as root")
	old := engineUser
	engineUser = "nobody"
	t.Cleanup(func() { engineUser = old })
}

// openDir is a folder that everybody may enter, as those below t.TempDir are not.
func openDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/tmp", "wo")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

func TestCachesAreTheEnginesAndTheRestIsRoots(t *testing.T) {
	asEngines(t)
	dir := openDir(t)
	for _, d := range []string{"cache/xdg/a", "venv/bin"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	require.NoError(t, os.Symlink(filepath.Join(dir, "venv"), filepath.Join(dir, "cache/link")))
	m := Manifest{Name: "r", Dir: dir}
	require.Equal(t, "owner", checkOwner(m)[0].Code)
	require.NoError(t, giveCaches(dir))
	require.Empty(t, checkOwner(m))
	who, _ := engines()
	for path, theirs := range map[string]bool{"cache": true, "cache/xdg/a": true, "cache/link": true, "venv": false, ".": false} {
		fi, err := os.Lstat(filepath.Join(dir, path))
		require.NoError(t, err)
		require.Equal(t, theirs, fi.Sys().(*syscall.Stat_t).Uid == who.uid, path)
	}
}

func TestInterpreterThatEnginesCannotRunIsNamedWithTheFolderInTheWay(t *testing.T) {
	asEngines(t)
	dir := openDir(t)
	home := filepath.Join(dir, "home")
	python := filepath.Join(home, "a", "python")
	require.NoError(t, os.MkdirAll(filepath.Dir(python), 0o700))
	require.NoError(t, os.WriteFile(python, nil, 0o755))
	link := filepath.Join(dir, "python")
	require.NoError(t, os.Symlink(python, link))
	require.ErrorContains(t, reachable(link), "may not enter "+home)
	require.Equal(t, "access", checkOwner(Manifest{Name: "r", Python: link})[0].Code)
	require.NoError(t, os.Chmod(home, 0o755))
	require.ErrorContains(t, reachable(link), "may not enter "+filepath.Dir(python))
	require.NoError(t, os.Chmod(filepath.Dir(python), 0o711))
	require.NoError(t, reachable(link))
}
