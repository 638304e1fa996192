package bench

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"warmd/agent/api/otlp"
	"warmd/placement"
)

// Engine is what a plain start needs to know: the same that warmd's arms are given.
type Engine struct {
	Runtime Runtime
	Model   string // folder
	Name    string // served name
	Args    []string
	Env     map[string]string // of the request, over the runtime's
}

// Plain is the arm without warmd: `vllm serve`, with the runtime's python and
// environment, the request's flags, and the variables that make it tell its spans,
// which warmd's arms have too. Like those it has a folder of its own for temporary
// files, for vLLM leaves sockets there. The returned function ends its receiver, and
// removes the folder unless a start failed: the log is there.
func Plain(ctx context.Context, e Engine) (Arm, func(), error) {
	c, err := newCollector()
	if err != nil {
		return Arm{}, nil, err
	}
	p := &plain{Engine: e, collector: c}
	if p.dir, err = os.MkdirTemp("", "warmctl-bench-"); err != nil {
		return Arm{}, nil, fmt.Errorf("make a folder for the engine's log: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() { defer close(done); _ = c.receiver.Run(ctx) }()
	return Arm{Name: "vllm", Start: func(context.Context) (Started, error) { return p.start() }}, func() {
		cancel()
		<-done
		if !p.died {
			_ = os.RemoveAll(p.dir)
		}
	}, nil
}

// plain makes the starts of the arm, one after the other.
type plain struct {
	Engine
	*collector
	dir  string // the log of the last start, and the folder of the one under way
	died bool   // an engine did, by itself
}

// endTime is what an engine and its children have to tidy up; then they are killed.
const endTime = 15 * time.Second

func (e *plain) start() (Started, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return Started{}, fmt.Errorf("find a port: %w", err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()
	log, err := os.Create(filepath.Join(e.dir, "vllm.log"))
	if err != nil {
		return Started{}, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	temp := filepath.Join(e.dir, "tmp")
	if err := os.Mkdir(temp, 0o700); err != nil {
		return Started{}, fmt.Errorf("make a folder for the engine's temporary files: %w", err)
	}
	id, begin := otlp.NewTraceID(), time.Now()
	argv := append([]string{filepath.Join(filepath.Dir(e.Runtime.Python), "vllm"), "serve", e.Model, "--served-model-name", e.Name, "--host", "127.0.0.1", "--port", port}, e.Args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	env := maps.Clone(e.Runtime.Env)
	maps.Copy(env, e.Env)
	env["TMPDIR"] = temp
	maps.Copy(env, otlp.Env(e.receiver.Endpoint(), otlp.Context{Trace: id, Span: otlp.NewSpanID(), Sampled: true}.Traceparent()))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, k+"="+env[k])
	}
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return Started{}, fmt.Errorf("start %s: %w", argv[0], err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	return Started{
		URL: "http://" + addr,
		Watch: func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return nil
			case <-ended:
				e.died = true
				return fmt.Errorf("start vllm serve: %s; its log %s ends with: %s", cmd.ProcessState, log.Name(), tail(log.Name()))
			}
		},
		Trace:  func(ctx context.Context) placement.Trace { return e.await(ctx, id, begin) },
		Config: func(context.Context) string { return configIn(log.Name()) },
		End: func() error {
			// Asked first: it has semaphores and segments in /dev/shm, which only it can
			// name. The last of its children removes them, after it.
			group := -cmd.Process.Pid
			_ = cmd.Process.Signal(syscall.SIGTERM)
			for late := time.Now().Add(endTime); time.Now().Before(late) && syscall.Kill(group, 0) == nil; {
				time.Sleep(20 * time.Millisecond)
			}
			_ = syscall.Kill(group, syscall.SIGKILL)
			<-ended
			if err := os.RemoveAll(temp); err != nil {
				return fmt.Errorf("remove the engine's temporary files: %w", err)
			}
			return nil
		},
	}, nil
}

// engineSays begins what vLLM logs about its whole effective configuration.
const engineSays = "Initializing a V1 LLM engine "

// configIn finds the engine's configuration in its log, empty when it is not there.
func configIn(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	return config(bufio.NewScanner(f))
}

// tail is the last line of a log.
func tail(file string) string {
	raw, _ := os.ReadFile(file)
	return lastLine(raw)
}

func config(lines *bufio.Scanner) string {
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if _, said, ok := strings.Cut(lines.Text(), engineSays); ok {
			return said
		}
	}
	return ""
}
