package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one machine of a run.
type Host struct {
	Name string
	Addr string // on the bridge

	lab    *Lab
	spec   Spec
	dir    string
	cgroup string

	mu     sync.Mutex
	leader int // pid of the host's PID 1; 0 without power
	ended  chan struct{}
}

// Spec says what is special about a host.
type Spec struct {
	// Bind makes folders of the machine appear at a path on the host.
	Bind []Bind
}

// Bind is a folder of the machine on a host, read-only. With Scratch the host may
// write there, on its own disk: the machine's folder stays as it is.
type Bind struct {
	From, To string
	Scratch  bool
}

// bootTime bounds a boot, which takes 2 s on an idle machine.
const bootTime = 90 * time.Second

// Boot makes a host and switches it on. It answers when systemd says that the host is up.
func (l *Lab) Boot(ctx context.Context, name string, spec Spec) (*Host, error) {
	l.mu.Lock()
	h := &Host{
		Name: name, Addr: addrOf(len(l.hosts) + 1), lab: l, spec: Spec{Bind: slices.Clone(spec.Bind)},
		dir: filepath.Join(l.dir, name), cgroup: filepath.Join(l.cgroup, name),
	}
	l.hosts = append(l.hosts, h)
	err := l.tellNames()
	l.mu.Unlock()
	if err == nil {
		err = h.build()
	}
	if err == nil {
		err = h.Start(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("boot %s: %w", name, err)
	}
	return h, nil
}

// Hosts lists the hosts of a run.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.hosts)
}

// Host finds a host by name; nil if there is none.
func (l *Lab) Host(name string) *Host {
	all := l.Hosts()
	if i := slices.IndexFunc(all, func(h *Host) bool { return h.Name == name }); i >= 0 {
		return all[i]
	}
	return nil
}

// Leader is the machine's pid of the host's PID 1; 0 without power.
func (h *Host) Leader() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.leader
}

// tellNames rewrites the hosts' common /etc/hosts in place: it is mounted there.
func (l *Lab) tellNames() error {
	var b bytes.Buffer
	fmt.Fprintln(&b, "127.0.0.1 localhost\n::1 localhost")
	for _, h := range l.hosts {
		fmt.Fprintln(&b, h.Addr, h.Name)
	}
	return os.WriteFile(l.hostsFile(), b.Bytes(), 0o644)
}

// build makes the disks and the network of a host.
func (h *Host) build() error {
	if err := h.overlay("disk", h.lab.rootfs, h.root()); err != nil {
		return err
	}
	for i, b := range h.spec.Bind {
		if !b.Scratch {
			continue
		}
		name := fmt.Sprintf("scratch-%d", i)
		h.spec.Bind[i].From = filepath.Join(h.dir, name)
		if err := h.overlay(name, b.From, h.spec.Bind[i].From); err != nil {
			return err
		}
	}
	return h.lab.plugIn(h)
}

// overlay mounts a folder of the machine with the host's own layer over it.
func (h *Host) overlay(name, lower, at string) error {
	upper, work := filepath.Join(h.lab.disk, h.Name, name, "upper"), filepath.Join(h.lab.disk, h.Name, name, "work")
	for _, d := range []string{upper, work, at} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("mount %s over %s: %w", at, lower, err)
	}
	return nil
}

func (h *Host) root() string { return filepath.Join(h.dir, "root") }

// shell is the cgroup of the commands that tests run on the host.
func (h *Host) shell() string   { return filepath.Join(h.cgroup, "payload", "test-shell") }
func (h *Host) console() string { return filepath.Join(h.dir, "console") }

// Start switches a host on that is off.
func (h *Host) Start(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leader != 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	if err := h.cable("up"); err != nil {
		return err
	}
	notify, err := h.listenNotify()
	if err != nil {
		return err
	}
	defer notify.Close()
	if err := h.spawn(notify.LocalAddr().String()); err != nil {
		return err
	}
	leader, err := h.awaitReady(ctx, notify)
	if err != nil {
		_ = h.powerOff()
		console, _ := os.ReadFile(h.console())
		return fmt.Errorf("%w; its console ends:\n%s", err, tail(string(console), 2000))
	}
	if err := os.MkdirAll(h.shell(), 0o755); err != nil {
		return err
	}
	h.leader = leader
	return nil
}

// spawn starts the container in the host's own cgroup.
func (h *Host) spawn(notify string) error {
	if err := os.MkdirAll(h.cgroup, 0o755); err != nil {
		return err
	}
	cgroup, err := os.Open(h.cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	console, err := os.OpenFile(h.console(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	args := []string{
		"--boot", "--quiet", "--register=no", "--keep-unit", "--notify-ready=yes", "--console=pipe",
		"--machine=" + h.lab.id + "-" + h.Name, "--hostname=" + h.Name, "--directory=" + h.root(),
		"--network-namespace-path=" + h.lab.namespace(h.Name), "--resolv-conf=off", "--timezone=off",
		"--bind-ro=" + h.lab.hostsFile() + ":/etc/hosts",
	}
	for _, b := range h.spec.Bind {
		how := "--bind-ro="
		if b.Scratch {
			how = "--bind="
		}
		args = append(args, how+b.From+":"+b.To)
	}
	cmd := exec.Command("systemd-nspawn", args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "NOTIFY_SOCKET=" + notify}
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start systemd-nspawn: %w (`make host-tools` installs it)", err)
	}
	h.ended = make(chan struct{})
	go func(ended chan struct{}) { _ = cmd.Wait(); close(ended) }(h.ended)
	return nil
}

func (h *Host) listenNotify() (*net.UnixConn, error) {
	path := filepath.Join(h.dir, "notify")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
}

// awaitReady returns the pid of the host's PID 1 when that says that it is up.
func (h *Host) awaitReady(ctx context.Context, notify *net.UnixConn) (leader int, err error) {
	stop := context.AfterFunc(ctx, func() { _ = notify.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	ended := h.ended
	go func() { <-ended; _ = notify.SetReadDeadline(time.Unix(1, 0)) }()
	buf := make([]byte, 4096)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			select {
			case <-h.ended:
				return 0, errors.New("the container ended")
			default:
				return 0, fmt.Errorf("not up within %s: %w", bootTime, err)
			}
		}
		for line := range strings.Lines(string(buf[:n])) {
			line = strings.TrimSpace(line)
			if pid, ok := strings.CutPrefix(line, "X_NSPAWN_LEADER_PID="); ok {
				if leader, err = strconv.Atoi(pid); err != nil {
					return 0, fmt.Errorf("read pid of PID 1: %w", err)
				}
			}
			if line == "READY=1" && leader != 0 {
				return leader, nil
			}
		}
	}
}
