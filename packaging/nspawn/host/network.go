package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The network of a run: one namespace with a bridge, where the tests themselves
// are a neighbour that is no host of the fleet, and one namespace for each host.
// The namespaces outlive the containers: a host that is off can still be set up.
const (
	outsideName = "lan"
	outsideAddr = "10.213.0.254"
)

func addrOf(index int) string { return fmt.Sprintf("10.213.0.%d", index) }

// namespace is the path of a network namespace of this run.
func (l *Lab) namespace(name string) string { return "/run/netns/" + l.id + "-" + name }

func (l *Lab) makeBridge() error {
	ns := filepath.Base(l.namespace(outsideName))
	return ip("netns add "+ns,
		"-n "+ns+" link add name br0 type bridge",
		"-n "+ns+" addr add "+outsideAddr+"/24 dev br0",
		"-n "+ns+" link set br0 up",
		"-n "+ns+" link set lo up")
}

// plugIn gives a host its namespace, with a cable to the bridge.
func (l *Lab) plugIn(h *Host) error {
	lan, own := filepath.Base(l.namespace(outsideName)), filepath.Base(l.namespace(h.Name))
	return ip("netns add "+own,
		"-n "+lan+" link add name "+h.port()+" type veth peer name host0 netns "+own,
		"-n "+lan+" link set "+h.port()+" master br0 up",
		"-n "+own+" addr add "+h.Addr+"/24 dev host0",
		"-n "+own+" link set host0 up",
		"-n "+own+" link set lo up")
}

// port is the host's end of its cable at the bridge.
func (h *Host) port() string { return "p-" + h.Name }

// cable connects or cuts a host's cable: whoever calls a host without power hears
// nothing, not even a refusal.
func (h *Host) cable(state string) error {
	return ip("-n " + filepath.Base(h.lab.namespace(outsideName)) + " link set " + h.port() + " " + state)
}

func removeNamespaces(id string) error {
	paths, err := filepath.Glob("/run/netns/" + id + "-*")
	errs := []error{err}
	for _, p := range paths {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount namespace %s: %w", p, err))
		}
		errs = append(errs, os.Remove(p))
	}
	return errors.Join(errs...)
}

// ip runs one ip command for each line.
func ip(lines ...string) error {
	for _, line := range lines {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	return nil
}

// within runs do on a thread that is in the namespace. The thread is never
// unlocked, so it ends with the goroutine and nobody else gets it.
func within(namespace string, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			f, err := os.Open(namespace)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter namespace %s: %w", namespace, err)
			}
			return do()
		}()
	}()
	return <-done
}

// Dial connects from the neighbour's place; it fits http.Transport. A name is that of a host.
func (l *Lab) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return l.dialFrom(ctx, outsideName, network, address)
}

// Dial connects from this host, its loopback included, whether it has power or not.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return h.lab.dialFrom(ctx, h.Name, network, address)
}

// DialUnix connects to a Unix socket on the host, as its root.
func (h *Host) DialUnix(ctx context.Context, path string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/%d/root%s", h.Leader(), path))
}

func (l *Lab) dialFrom(ctx context.Context, from, network, address string) (conn net.Conn, err error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if name == "localhost" {
		name = "127.0.0.1"
	}
	if _, err := netip.ParseAddr(name); err != nil {
		h := l.Host(name)
		if h == nil {
			return nil, fmt.Errorf("dial %s: no such host", address)
		}
		name = h.Addr
	}
	return conn, within(l.namespace(from), func() error {
		// A literal address is dialled by this goroutine itself, so in this namespace.
		conn, err = (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(name, port))
		return err
	})
}

// Drop loses every packet that this host sends to the others, and none that they
// send. It ends with Heal, or with the test.
func (h *Host) Drop(t testing.TB, others ...*Host) {
	t.Helper()
	for _, o := range others {
		o.rule(t, "-A", h)
		t.Cleanup(func() { o.rule(t, "-D", h) })
	}
}

// Partition loses every packet between this host and the others.
func (h *Host) Partition(t testing.TB, others ...*Host) {
	t.Helper()
	h.Drop(t, others...)
	for _, o := range others {
		o.Drop(t, h)
	}
}

// Heal takes back what Drop and Partition did between this host and the others.
func (h *Host) Heal(t testing.TB, others ...*Host) {
	t.Helper()
	for _, o := range others {
		o.rule(t, "-D", h)
		h.rule(t, "-D", o)
	}
}

// rule adds or deletes the rule that loses what comes from another host. What is
// not there need not be deleted.
func (h *Host) rule(t testing.TB, verb string, from *Host) {
	t.Helper()
	rule := []string{"INPUT", "-s", from.Addr, "-j", "DROP"}
	table := func(verb string) ([]byte, error) {
		return exec.Command("nsenter", append([]string{"--net=" + h.lab.namespace(h.Name), "iptables", "-w", verb}, rule...)...).CombinedOutput()
	}
	if verb == "-D" {
		if _, err := table("-C"); err != nil {
			return
		}
	}
	if out, err := table(verb); err != nil {
		t.Fatalf("%s: iptables %s %v: %v: %s", h.Name, verb, rule, err, out)
	}
}
