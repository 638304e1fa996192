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
	Log     string            // file
}

// Plain is the arm without warmd: `vllm serve`, with the runtime's python and
// environment, the request's flags, and the variables that make it tell its spans,
// which warmd's arms have too. The returned function ends its receiver.
func Plain(ctx context.Context, e Engine) (Arm, func(), error) {
	c, err := newCollector()
	if err != nil {
		return Arm{}, nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() { defer close(done); _ = c.receiver.Run(ctx) }()
	return Arm{Name: "vllm", Start: func(ctx context.Context) (Started, error) { return e.start(c) }}, func() { cancel(); <-done }, nil
}

func (e Engine) start(c *collector) (Started, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return Started{}, fmt.Errorf("find a port: %w", err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()
	log, err := os.Create(e.Log)
	if err != nil {
		return Started{}, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	id, begin := otlp.NewTraceID(), time.Now()
	argv := append([]string{filepath.Join(filepath.Dir(e.Runtime.Python), "vllm"), "serve", e.Model, "--served-model-name", e.Name, "--host", "127.0.0.1", "--port", port}, e.Args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	env := maps.Clone(e.Runtime.Env)
	maps.Copy(env, e.Env)
	maps.Copy(env, otlp.Env(c.receiver.Endpoint(), otlp.Context{Trace: id, Span: otlp.NewSpanID(), Sampled: true}.Traceparent()))
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
				return fmt.Errorf("start vllm serve: %s; its log %s ends with: %s", cmd.ProcessState, e.Log, tail(e.Log))
			}
		},
		Trace:  func(ctx context.Context) placement.Trace { return c.await(ctx, id, begin) },
		Config: func(context.Context) string { return configIn(e.Log) },
		End: func() error {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its children are of its group, also when it is gone
			<-ended
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
