package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	agentapi "warmd/agent/api"
	coordapi "warmd/coordinator/api"
)

// The end-to-end tests run the real binary as separate processes, so that each of
// them can be killed. The test binary plays three parts, chosen by its first
// argument: the test, an engine for exec runtimes, and an etcd of its own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "play-warmd":
			if os.Getenv("LISTEN_FDS") != "" { // systemd knows it between fork and exec
				os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
			}
			os.Exit(run(append([]string{"warmd"}, os.Args[2:]...)))
		case "play-engine":
			playEngine(os.Args[2:])
		case "play-etcd":
			playEtcd(os.Args[2])
		}
	}
	os.Exit(m.Run())
}

// playEngine serves the OpenAI routes that a start needs: `--port N --name M`,
// and `--fault hang|exit|crash-after-ready` to misbehave.
func playEngine(args []string) {
	flag := func(name string) string {
		for i := range len(args) - 1 {
			if args[i] == name {
				return args[i+1]
			}
		}
		return ""
	}
	switch flag("--fault") {
	case "exit":
		fmt.Println("engine: no such device")
		os.Exit(3)
	case "hang":
		fmt.Println("engine: waiting for a card that never comes")
		select {}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /v1/completions", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"object": "text_completion", "choices": []map[string]any{{"text": " Ada", "index": 0, "finish_reason": "length"}}})
	})
	mux.HandleFunc("POST /die", func(http.ResponseWriter, *http.Request) { os.Exit(9) })
	srv := &http.Server{Addr: "127.0.0.1:" + flag("--port"), Handler: mux}
	fmt.Println("engine: listening on", srv.Addr)
	fmt.Println(srv.ListenAndServe())
	os.Exit(1)
}

// playEtcd runs a real etcd in this process and writes its client URL to
// dir/url when it is ready.
func playEtcd(dir string) {
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel, cfg.TickMs, cfg.ElectionMs = filepath.Join(dir, "data"), "error", 10, 100
	listen, err := os.ReadFile(filepath.Join(dir, "url")) // a restarted member keeps its address
	if err != nil {
		free, err := freeAddress()
		if err != nil {
			fmt.Fprintln(os.Stderr, "start etcd:", err)
			os.Exit(1)
		}
		listen = []byte("http://" + free.String())
	}
	client, _ := url.Parse(string(listen))
	peer, _ := url.Parse("http://127.0.0.1:0")
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start etcd:", err)
		os.Exit(1)
	}
	<-e.Server.ReadyNotify()
	tmp := filepath.Join(dir, "url.tmp")
	_ = os.WriteFile(tmp, []byte("http://"+e.Clients[0].Addr().String()), 0o600)
	_ = os.Rename(tmp, filepath.Join(dir, "url"))
	fmt.Println("etcd: ready")
	select {}
}

// proc is a process under test. Its output goes to a file that is shown when the
// test fails.
type proc struct {
	*exec.Cmd
	log  string
	done chan struct{}
}

func start(t testing.TB, name string, args ...string) *proc {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return startBinary(t, self, name, args...)
}

func startBinary(t testing.TB, self, name string, args ...string) *proc {
	t.Helper()
	return startWith(t, self, name, func(*exec.Cmd) {}, args...)
}

// startWith lets the caller change the command before it runs.
func startWith(t testing.TB, self, name string, change func(*exec.Cmd), args ...string) *proc {
	t.Helper()
	logPath := filepath.Join(t.TempDir(), name+".log")
	log, err := os.Create(logPath)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &proc{Cmd: exec.Command(self, args...), log: logPath, done: make(chan struct{})}
	p.Stdout, p.Stderr = log, log
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	change(p.Cmd)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.end(syscall.SIGTERM)
		if t.Failed() {
			b, _ := os.ReadFile(logPath)
			t.Logf("--- %s (pid %d)\n%s", name, p.Process.Pid, tail(string(b), 6000))
		}
	})
	return p
}

// end signals the process and waits; after 30 s it is killed.
func (p *proc) end(sig syscall.Signal) {
	_ = p.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = p.Process.Kill()
		<-p.done
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// eventually polls until ok answers nil; the last error is the failure.
func eventually(t testing.TB, within time.Duration, what string, ok func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := ok()
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > within {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// startEtcd runs an etcd of its own and returns its URL.
func startEtcd(t testing.TB, dir string) (*proc, string) {
	t.Helper()
	p := start(t, "etcd", "play-etcd", dir)
	eventually(t, 20*time.Second, "etcd ready", func() error {
		b, err := os.ReadFile(p.log)
		if err == nil && !strings.Contains(string(b), "etcd: ready") {
			return fmt.Errorf("not ready: %s", b)
		}
		return err
	})
	b, err := os.ReadFile(filepath.Join(dir, "url"))
	if err != nil {
		t.Fatal(err)
	}
	return p, string(b)
}

// execRuntime writes a runtime of kind exec whose engine is this test binary.
func execRuntime(t testing.TB, root, name string, extra ...string) {
	t.Helper()
	self, _ := os.Executable()
	args := append([]string{"play-warmd", "runtime", "add", name, "--root", root, "--device", "cpu", "--exec", "--", self, "play-engine", "--port", "{port}"}, extra...)
	out, err := exec.Command(self, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("runtime add: %v\n%s", err, out)
	}
}

// workerOn is short for the agent's word about one worker.
type workerOn = agentapi.Worker

func coordClient(t testing.TB, sock string) *coordapi.Client {
	t.Helper()
	c, err := coordapi.NewClient(sock, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func agentClient(t testing.TB, sock string) *agentapi.Client {
	t.Helper()
	c, err := agentapi.NewClient(sock, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// alive reports whether a pid still runs (a zombie does not).
func alive(pid int) bool {
	f, err := statFields(pid)
	return err == nil && f[0] != "Z"
}

// statFields are the fields of /proc/PID/stat behind the name, which may hold
// anything: the state is the first.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])), nil
}
