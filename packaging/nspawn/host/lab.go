package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// Lab is one run of hosts. All that it makes carries its id: the folder
// /run/warmd-hosts/ID, a folder of the disk, a cgroup, network namespaces.
type Lab struct {
	id     string
	dir    string // mounts, sockets, consoles
	disk   string // the hosts' writable layers
	cgroup string
	rootfs string
	lock   *os.File // held for as long as this process lives

	janitor *exec.Cmd
	alive   *os.File // its end tells the janitor that this process is gone

	mu    sync.Mutex
	hosts []*Host
}

// runsDir holds a folder for each run: a run is dead when its lock can be taken.
const runsDir = "/run/warmd-hosts"

// Open sweeps what dead runs left, makes the root file system if the cache has
// none, and sets up a run. Close ends it.
func Open(ctx context.Context, cache string) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("open lab: booting hosts needs root")
	}
	if err := SweepDead(); err != nil {
		return nil, fmt.Errorf("open lab: %w", err)
	}
	rootfs, err := makeRootfs(ctx, cache)
	if err != nil {
		return nil, fmt.Errorf("open lab: %w", err)
	}
	id := fmt.Sprintf("wt%d", os.Getpid())
	l := &Lab{id: id, dir: filepath.Join(runsDir, id), disk: filepath.Join(cache, "hosts", id), rootfs: rootfs}
	if err := l.setUp(); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("open lab: %w", err)
	}
	return l, nil
}

func (l *Lab) setUp() (err error) {
	// The lock comes first: from then on others know that this run lives.
	if l.lock, err = lockRun(l.dir, syscall.LOCK_NB); err != nil {
		return err
	}
	if l.cgroup, err = makeCgroup(l.id); err != nil {
		return err
	}
	if err := os.MkdirAll(l.disk, 0o700); err != nil {
		return err
	}
	if err := saveRun(l.dir, record{Disk: l.disk, Cgroup: l.cgroup}); err != nil {
		return err
	}
	if err := os.WriteFile(l.hostsFile(), []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644); err != nil {
		return err
	}
	if err := l.startJanitor(); err != nil {
		return err
	}
	return l.makeBridge()
}

// Close ends every host and removes all that the run made.
func (l *Lab) Close() error {
	err := sweep(l.dir)
	if l.alive != nil {
		l.alive.Close()
		_ = l.janitor.Wait() // it finds nothing left to do
	}
	if l.lock != nil {
		l.lock.Close()
	}
	return err
}

// Folder makes a folder on the machine that is removed with the run.
func (l *Lab) Folder(name string) (string, error) {
	dir := filepath.Join(l.disk, "folder-"+name)
	return dir, os.MkdirAll(dir, 0o755)
}

// hostsFile is /etc/hosts on every host.
func (l *Lab) hostsFile() string { return filepath.Join(l.dir, "etc-hosts") }

// startJanitor starts this binary once more, to sweep when this process is gone. It
// has a session of its own: what ends a test from a terminal must not end it.
func (l *Lab) startJanitor() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	l.alive = w
	l.janitor = exec.Command("/proc/self/exe", janitorArg, l.dir)
	l.janitor.Stdin = r
	l.janitor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return l.janitor.Start()
}
