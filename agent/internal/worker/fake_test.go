package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The scripted fake: this test binary, run again, is a zygote or a half that
// speaks the protocol of the Python side with no engine behind it. What a worker
// does is scripted by its fork environment:
//
//	FAKE_LOAD=serve (default) | fail | hang | crash | refuse
//	FAKE_GRANDCHILD=1  the engine starts a child of its own that ignores SIGTERM
//	FAKE_WARM=never    the engine never reports warm
//	FAKE_SLEEP=code    sleep is refused with that code
//	FAKE_PHASES=n      so many phases are sent at load
func TestMain(m *testing.M) {
	switch os.Getenv("WARMD_FAKE") {
	case "zygote":
		fakeZygoteMain()
	case "half":
		fakeHalfMain()
	}
	onIllegal = func(err error) { panic(err) }
	goleak.VerifyTestMain(m)
}

// fakeServer accepts connections and hands each line to handle, one at a time.
type fakeServer struct {
	mu      sync.Mutex
	greeted map[*net.UnixConn]bool
	handle  func(op string, raw []byte, files []*os.File) (any, *RemoteError)
}

func (s *fakeServer) listen(path string) *net.UnixListener {
	_ = os.Remove(path)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		fmt.Fprintln(os.Stderr, "fatal error: fake:", err)
		os.Exit(3)
	}
	s.greeted = map[*net.UnixConn]bool{}
	return ln
}

func (s *fakeServer) serve(ln *net.UnixListener) {
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		go s.talk(c)
	}
}

func (s *fakeServer) talk(c *net.UnixConn) {
	defer c.Close()
	in := &fdReader{c: c}
	r := bufio.NewReader(in)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			s.mu.Lock()
			delete(s.greeted, c)
			s.mu.Unlock()
			return
		}
		var req struct {
			ID int64  `json:"id"`
			Op string `json:"op"`
		}
		if json.Unmarshal(line, &req) != nil {
			return
		}
		s.mu.Lock()
		out, refused := s.handle(req.Op, line, in.take())
		if req.Op == "hello" {
			s.greeted[c] = true
		}
		fields := map[string]any{}
		if b, err := json.Marshal(out); err == nil && out != nil {
			_ = json.Unmarshal(b, &fields)
		}
		fields["id"] = req.ID
		if refused != nil {
			fields["error"] = refused
		}
		b, _ := json.Marshal(fields)
		_, _ = c.Write(append(b, '\n'))
		s.mu.Unlock()
	}
}

// emit is called with mu held.
func (s *fakeServer) emit(ev any) {
	b, _ := json.Marshal(ev)
	for c := range s.greeted {
		_, _ = c.Write(append(b, '\n'))
	}
}

// fdReader keeps the files that come with the bytes.
type fdReader struct {
	c     *net.UnixConn
	files []*os.File
}

func (f *fdReader) Read(p []byte) (int, error) {
	oob := make([]byte, 256)
	n, oobn, _, _, err := f.c.ReadMsgUnix(p, oob)
	if msgs, perr := unix.ParseSocketControlMessage(oob[:oobn]); perr == nil {
		for _, m := range msgs {
			fds, _ := unix.ParseUnixRights(&m)
			for _, fd := range fds {
				f.files = append(f.files, os.NewFile(uintptr(fd), "passed"))
			}
		}
	}
	if err == nil && n == 0 {
		err = net.ErrClosed
	}
	return n, err
}

func (f *fdReader) take() []*os.File {
	fs := f.files
	f.files = nil
	return fs
}

func fakeZygoteMain() {
	fs := flag.NewFlagSet("zygote", flag.ExitOnError)
	socket, name, kind := fs.String("socket", "", ""), fs.String("runtime", "", ""), fs.String("kind", "", "")
	gen := fs.Int("generation", 0, "")
	fs.String("profile", "", "")
	fs.String("manifest", "", "")
	_ = fs.Parse(os.Args[2:])
	if msg := os.Getenv("FAKE_ZYGOTE_DIES"); msg != "" && *kind != "exec" {
		fmt.Fprintln(os.Stderr, msg)
		os.Exit(1)
	}
	me, _ := FindProc(os.Getpid())
	kids, exits := map[int]child{}, []exit{}
	s := &fakeServer{}
	ended := func(c child, ps *os.ProcessState, cause string) { // mu held
		_ = syscall.Kill(-c.PID, syscall.SIGKILL)
		delete(kids, c.PID)
		x := exit{child: c, Cause: cause, TNS: monoNow()}
		ws := ps.Sys().(syscall.WaitStatus)
		if ws.Signaled() {
			n := int(ws.Signal())
			x.Signal = &n
		} else {
			n := ws.ExitStatus()
			x.Code = &n
		}
		exits = append(exits, x)
		s.emit(map[string]any{"ev": "exit", "worker": c.Worker, "role": c.Role, "pid": c.PID, "start": c.Start, "code": x.Code, "signal": x.Signal, "cause": cause, "t_ns": x.TNS})
	}
	causes := map[Proc]string{}
	start := func(worker, role, log string, cmd *exec.Cmd) (any, *RemoteError) {
		out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, &RemoteError{"bad_request", err.Error()}
		}
		defer out.Close()
		cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = out, out, &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return nil, &RemoteError{"bad_request", "cannot start " + cmd.Path + ": " + err.Error()}
		}
		p, _ := FindProc(cmd.Process.Pid)
		c := child{p, worker, role}
		kids[p.PID], causes[p] = c, "exit"
		go func() {
			_ = cmd.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			ended(c, cmd.ProcessState, causes[p])
			for _, other := range kids {
				if other.Worker == worker && role != roleServe {
					causes[other.Proc] = "pair"
					_ = syscall.Kill(-other.PID, syscall.SIGKILL)
				}
			}
		}()
		return p, nil
	}
	s.handle = func(op string, raw []byte, _ []*os.File) (any, *RemoteError) {
		switch op {
		case "hello":
			list := []child{}
			for _, c := range kids {
				list = append(list, c)
			}
			return zygoteHello{Proto: Proto, Kind: *kind, PID: me.PID, Start: me.Start, Runtime: *name, Generation: *gen, Children: list, Exits: exits}, nil
		case "children":
			list := []child{}
			for _, c := range kids {
				list = append(list, c)
			}
			return map[string]any{"children": list}, nil
		case "fork":
			if *kind == "exec" {
				return nil, &RemoteError{"unsupported", "kind exec does not fork"}
			}
			var r forkRequest
			_ = json.Unmarshal(raw, &r)
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = []string{"WARMD_FAKE=half", "HALF_WORKER=" + r.Worker, "HALF_ROLE=" + r.Role, "HALF_SOCKET=" + r.Socket, "HALF_GEN=" + strconv.Itoa(*gen), noExitSleep + "=" + noExitSleepValue, "HALF_PARENT=" + strconv.Itoa(me.PID)}
			for k, v := range r.Env {
				cmd.Env = append(cmd.Env, k+"="+v)
			}
			return start(r.Worker, r.Role, r.Log, cmd)
		case "spawn":
			var r spawnRequest
			_ = json.Unmarshal(raw, &r)
			cmd := exec.Command(r.Argv[0], r.Argv[1:]...)
			cmd.Env, cmd.Dir = []string{}, r.Cwd
			for k, v := range r.Env {
				cmd.Env = append(cmd.Env, k+"="+v)
			}
			return start(r.Worker, r.Role, r.Log, cmd)
		case "kill":
			var r killRequest
			_ = json.Unmarshal(raw, &r)
			if !r.Alive() {
				return nil, &RemoteError{"gone", "not there"}
			}
			if _, ok := causes[r.Proc]; ok {
				causes[r.Proc] = "kill"
				_ = syscall.Kill(-r.PID, syscall.Signal(r.Signal))
			}
			_ = r.Proc.Signal(syscall.Signal(r.Signal))
			return map[string]any{}, nil
		case "stop":
			time.AfterFunc(10*time.Millisecond, func() { os.Exit(0) })
			return map[string]any{}, nil
		}
		return map[string]any{}, nil
	}
	if d, err := time.ParseDuration(os.Getenv("FAKE_ZYGOTE_IMPORT")); err == nil && *kind != "exec" {
		ln := s.listen(*socket)
		<-time.After(d) // connects wait for their hello meanwhile
		s.serve(ln)
	}
	s.serve(s.listen(*socket))
}

func fakeHalfMain() {
	role := os.Getenv("HALF_ROLE")
	me, _ := FindProc(os.Getpid())
	gen, _ := strconv.Atoi(os.Getenv("HALF_GEN"))
	signal.Ignore(syscall.SIGTERM)
	if os.Getenv("FAKE_GRANDCHILD") != "" && role == roleEngine {
		c := exec.Command("/bin/sh", "-c", "trap '' TERM; echo grandchild $$; while :; do sleep 1; done")
		c.Stdout = os.Stdout
		_ = c.Start()
	}
	state, placement, attempt := Warm, "", 0
	if os.Getenv("FAKE_WARM") == "never" && role == roleEngine {
		state = Spawning
	}
	phases := []any{map[string]any{"ev": "phase", "proc": role, "name": "fork", "start_ns": monoNow(), "dur_ns": 1e6, "warm": true}}
	s := &fakeServer{}
	set := func(to State) {
		state = to
		s.emit(map[string]any{"ev": "state", "state": to})
	}
	var lastErr *halfError
	fail := func() { // mu held
		lastErr = &halfError{Code: "load_failed", Message: "no file named config.json in /models/x", Detail: "Traceback ..."}
		s.emit(map[string]any{"ev": "error", "code": lastErr.Code, "message": lastErr.Message, "detail": lastErr.Detail})
		os.Exit(1)
	}
	s.handle = func(op string, raw []byte, files []*os.File) (any, *RemoteError) {
		switch op {
		case "hello":
			h := map[string]any{"proto": Proto, "worker": os.Getenv("HALF_WORKER"), "role": role, "pid": me.PID, "start": me.Start, "generation": gen, "state": state, "placement": nil, "attempt": nil, "phases": phases, "error": lastErr}
			if placement != "" {
				h["placement"], h["attempt"] = placement, attempt
			}
			return h, nil
		case "load":
			var r loadRequest
			_ = json.Unmarshal(raw, &r)
			if r.Placement == placement && r.Attempt == attempt {
				return map[string]any{}, nil
			}
			if state != Warm || os.Getenv("FAKE_LOAD") == "refuse" && role == roleAPI {
				return nil, &RemoteError{"bad_state", "this half is " + string(state)}
			}
			if role == roleAPI && len(files) != 1 {
				return nil, &RemoteError{"bad_request", "no listening socket"}
			}
			placement, attempt = r.Placement, r.Attempt
			set(Loading)
			go fakeLoad(s, role, r, files, set, fail)
			return map[string]any{}, nil
		case "sleep", "wake":
			if role != roleAPI || state != Serving && state != Sleeping {
				return nil, &RemoteError{"bad_state", "this half is " + string(state)}
			}
			if why := os.Getenv("FAKE_SLEEP"); why != "" && op == "sleep" {
				return nil, &RemoteError{why, "not this one"}
			}
			to := map[string]State{"sleep": Sleeping, "wake": Serving}[op]
			if state == to {
				return map[string]any{}, nil
			}
			set(to)
			return map[string]any{"start_ns": monoNow(), "dur_ns": 1e6}, nil
		case "drain":
			set(Draining)
			time.AfterFunc(20*time.Millisecond, func() { os.Exit(0) })
		}
		return map[string]any{}, nil
	}
	ln := s.listen(os.Getenv("HALF_SOCKET"))
	// The real zygote listens before it forks. We listen after, so a zygote that is
	// killed in between must take us along: nobody could know of us.
	if strconv.Itoa(os.Getppid()) != os.Getenv("HALF_PARENT") {
		os.Exit(4)
	}
	fmt.Println("fake", role, "listens")
	s.serve(ln)
}

func fakeLoad(s *fakeServer, role string, r loadRequest, files []*os.File, set func(State), fail func()) {
	peer, _ := r.Peer.open()
	s.mu.Lock()
	n, _ := strconv.Atoi(os.Getenv("FAKE_PHASES"))
	for i := range n {
		s.emit(map[string]any{"ev": "phase", "proc": role, "name": "step " + strconv.Itoa(i), "start_ns": monoNow(), "dur_ns": 1, "warm": false})
	}
	switch os.Getenv("FAKE_LOAD") {
	case "hang":
	case "crash":
		if role == roleEngine {
			fmt.Fprintln(os.Stderr, "RuntimeError: the engine core is broken")
			os.Exit(1)
		}
	case "fail":
		if role == roleEngine {
			fail()
		}
	default:
		if role == roleAPI {
			ln, err := net.FileListener(files[0])
			if err != nil {
				fail()
			}
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					fmt.Fprintf(c, "hello from %s %v\n", r.Placement, r.Argv)
					c.Close()
				}
			}()
		}
		set(Serving)
	}
	s.mu.Unlock()
	if peer != nil { // the pair rule without a zygote
		_ = peer.wait(context.Background())
		os.Exit(pairLost)
	}
}

func monoNow() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}
