package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"warmd/agent/api"
)

// unit plays systemd for one service: it holds the listening socket, and hears what
// the service says.
type unit struct {
	t      *testing.T
	notify *net.UnixConn
	env    []string
	socket *os.File
	path   string
}

func newUnit(t *testing.T, name string) *unit {
	dir, err := os.MkdirTemp("", "wu") // short: socket paths have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	u := &unit{t: t, path: filepath.Join(dir, name+".sock")}
	at := filepath.Join(dir, "notify")
	u.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", u.path)
	if err != nil {
		t.Fatal(err)
	}
	if u.socket, err = ln.(*net.UnixListener).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		u.notify.Close()
		u.socket.Close()
		ln.Close()
		os.RemoveAll(dir)
	})
	u.env = []string{"NOTIFY_SOCKET=" + at, "INVOCATION_ID=0", "LISTEN_FDS=1", "LISTEN_FDNAMES=" + name}
	return u
}

func (u *unit) start(args ...string) *proc {
	u.t.Helper()
	self, err := os.Executable()
	if err != nil {
		u.t.Fatal(err)
	}
	return startWith(u.t, self, args[1], func(c *exec.Cmd) {
		c.Env, c.ExtraFiles = append(os.Environ(), u.env...), []*os.File{u.socket}
	}, args...)
}

// until reads what the service says up to a message with all of the words.
func (u *unit) until(words ...string) string {
	u.t.Helper()
	b := make([]byte, 4096)
	_ = u.notify.SetReadDeadline(time.Now().Add(30 * time.Second))
	for heard := []string{}; ; {
		n, err := u.notify.Read(b)
		if err != nil {
			u.t.Fatalf("waiting for %q: %v; heard %q", words, err, heard)
		}
		heard = append(heard, string(b[:n]))
		all := true
		for _, w := range words {
			all = all && strings.Contains(string(b[:n]), w)
		}
		if all {
			return string(b[:n])
		}
	}
}

func TestAgentTakesSystemdsSocketTellsItHowItIsAndReloadsOnHUP(t *testing.T) {
	u := newUnit(t, "agent")
	dir := filepath.Dir(u.path)
	config := filepath.Join(dir, "agent.toml")
	text := fmt.Sprintf("node = \"n1\"\ndata_dir = %q\nrun_dir = %q\nlog_dir = %q\nruntimes_dir = %q\ndevice = \"cpu\"\nlauncher = \"exec\"\nsocket = \"/nonexistent/not-used.sock\"\n",
		dir+"/data", dir+"/run", dir+"/log", dir+"/runtimes")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := u.start("play-warmd", "agent", "--config", config)
	u.until("READY=1", "STATUS=1 device, 0 warm, 0 serving, 0 loading")
	if n, err := agentClient(t, u.path).Node(t.Context()); err != nil || n.Capacity.Node != "n1" {
		t.Fatal(n, err)
	}

	_ = p.Process.Signal(syscall.SIGHUP)
	u.until("RELOADING=1", "MONOTONIC_USEC=")
	u.until("READY=1", "STATUS=1 device")

	if err := os.WriteFile(config, []byte(text+"colour = \"red\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = p.Process.Signal(syscall.SIGHUP)
	u.until("RELOADING=1")
	u.until("READY=1", "STATUS=reload refused", "colour")
	if _, err := agentClient(t, u.path).Node(t.Context()); err != nil {
		t.Fatalf("a configuration that is refused must change nothing: %v", err)
	}

	p.end(syscall.SIGTERM)
	u.until("STOPPING=1")
	if code := p.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if c, err := net.Dial("unix", u.path); err != nil {
		t.Fatalf("the socket is systemd's, and must outlive the agent: %v", err)
	} else {
		c.Close()
	}
}

func TestCoordinatorTakesSystemdsSocketAndIsReadyWhenItServes(t *testing.T) {
	_, etcd := startEtcd(t, t.TempDir())
	u := newUnit(t, "coordinator")
	p := u.start("play-warmd", "coordinator", "--name", "c1", "--etcd", etcd, "--gossip", "127.0.0.1:0")
	u.until("READY=1", "STATUS=0 of 0 nodes alive, 0 placing")
	if _, err := coordClient(t, u.path).Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = p.Process.Signal(syscall.SIGHUP)
	u.until("RELOADING=1")
	u.until("READY=1")
	p.end(syscall.SIGTERM)
	u.until("STOPPING=1")
}

// A stream of requests over restarts: each is answered, by this agent or the next.
func TestRestartsOfTheAgentLoseNoRequest(t *testing.T) {
	u := newUnit(t, "agent")
	dir := filepath.Dir(u.path)
	args := []string{"play-warmd", "agent", "--name", "n1", "--data", dir + "/data", "--run", dir + "/run", "--runtimes", dir + "/runtimes", "--device", "cpu"}
	p := u.start(args...)
	u.until("READY=1")
	stop := make(chan struct{})
	var asked, failed atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := api.NewClient(u.path, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := c.Fleet(t.Context()); err != nil {
				failed.Add(1)
				t.Errorf("request %d: %v", asked.Load(), err)
			}
			if asked.Add(1)%2 == 0 {
				c.Close() // with and without a connection that idles
			}
		}
	})
	for range 5 {
		p.end(syscall.SIGTERM)
		p = u.start(args...)
		u.until("READY=1")
		before := asked.Load()
		eventually(t, 20*time.Second, "this agent answers, too", func() error {
			if n := asked.Load() - before; n < 10 {
				return fmt.Errorf("it has answered %d requests", n)
			}
			return nil
		})
	}
	close(stop)
	wg.Wait()
	if failed.Load() > 0 {
		t.Fatalf("%d of %d requests failed", failed.Load(), asked.Load())
	}
	t.Logf("%d requests over 5 restarts, none failed", asked.Load())
}
