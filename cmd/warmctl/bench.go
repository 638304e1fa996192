package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// arm is one way to start a model. start returns the base URL as soon as it is
// known, before anything listens there if need be, and a function that ends it.
type arm struct {
	name  string
	start func(ctx context.Context) (url string, end func() error, err error)
}

// sample is one start. Seconds is request sent -> first streamed token received,
// by one clock in one process, the same way in every arm.
type sample struct {
	Arm       string  `json:"arm"`
	Run       int     `json:"run"`
	Discarded bool    `json:"discarded,omitempty"`
	Seconds   float64 `json:"seconds"`
	Text      string  `json:"text"`
	Load1     float64 `json:"load1"`
}

// summary is what is quoted of one arm: the samples that were not discarded.
type summary struct {
	Arm string  `json:"arm"`
	N   int     `json:"n"`
	P50 float64 `json:"p50_seconds"`
	P95 float64 `json:"p95_seconds"`
	Min float64 `json:"min_seconds"`
	Max float64 `json:"max_seconds"`
	// Ratio is the first arm's median over this one's.
	Ratio float64 `json:"ratio"`
}

// benchReport is the JSON of `warmctl bench cold-start`.
type benchReport struct {
	Model   string    `json:"model"`
	Runtime string    `json:"runtime"`
	Args    []string  `json:"args"`
	Samples []sample  `json:"samples"`
	Arms    []summary `json:"arms"`
}

const benchPrompt, benchTokens = "Hello my name is", 8

// interleave runs every arm once a round, so that a drift of the machine hits all
// arms alike; the first round is discarded (caches, first-run costs). before runs
// ahead of each round.
func interleave(ctx context.Context, arms []arm, name string, runs int, before func() error, report func(sample)) ([]sample, error) {
	var all []sample
	for round := range runs + 1 {
		if err := before(); err != nil {
			return all, err
		}
		for _, a := range arms {
			s, err := once(ctx, a, name)
			if err != nil {
				return all, fmt.Errorf("run arm %s: %w", a.name, err)
			}
			s.Run, s.Discarded = round, round == 0
			if len(all) > 0 && s.Text != all[0].Text {
				return all, fmt.Errorf("compare arms: %s answers %q, %s answers %q: they do not serve the same model the same way", a.name, s.Text, all[0].Arm, all[0].Text)
			}
			all = append(all, s)
			report(s)
		}
	}
	return all, nil
}

func once(ctx context.Context, a arm, name string) (s sample, err error) {
	begin := time.Now()
	url, end, err := a.start(ctx)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, end()) }()
	first, text, err := firstToken(ctx, url, name)
	if err != nil {
		return s, err
	}
	return sample{Arm: a.name, Seconds: first.Sub(begin).Seconds(), Text: text, Load1: load1()}, nil
}

// firstToken asks for a streamed completion until somebody answers and returns
// the moment of the first token.
func firstToken(ctx context.Context, base, name string) (first time.Time, text string, err error) {
	body, _ := json.Marshal(map[string]any{"model": name, "prompt": benchPrompt, "max_tokens": benchTokens, "temperature": 0, "stream": true})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var resp *http.Response
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/completions", bytes.NewReader(body))
		if err != nil {
			return first, "", err
		}
		req.Header.Set("Content-Type", "application/json")
		if resp, err = client.Do(req); err == nil {
			break
		}
		select { // nobody listens yet: a plain engine start opens its port late
		case <-ctx.Done():
			return first, "", ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return first, "", fmt.Errorf("ask %s: %s: %s", base, resp.Status, b)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var chunk struct {
			Choices []struct{ Text string }
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			return first, "", fmt.Errorf("decode stream: %w", err)
		}
		if len(chunk.Choices) == 0 {
			continue
		}
		if first.IsZero() {
			first = time.Now()
		}
		text += chunk.Choices[0].Text
	}
	if first.IsZero() {
		return first, "", errors.Join(errors.New("read stream: it ended without a token"), lines.Err())
	}
	return first, text, nil
}

// warmdArm places through the coordinator. The client asks the endpoint as soon
// as the agent accepted: the agent listens from then on and the request waits there.
func warmdArm(c *coordapi.Client, name string, r placement.Request) arm {
	return arm{name: name, start: func(ctx context.Context) (string, func() error, error) {
		r.ID = ""
		p, err := c.Place(ctx, r, "assigned", nil)
		if err != nil {
			return "", nil, err
		}
		end := func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			if _, err := c.Release(ctx, p.ID, 0); err != nil {
				return err
			}
			return refilled(ctx, c, p.Runtime)
		}
		return p.Endpoint, end, nil
	}}
}

// refilled waits until a parked worker is idle again, so that every run of the
// warm arm starts from the same state.
func refilled(ctx context.Context, c *coordapi.Client, runtime string) error {
	for {
		f, err := c.Fleet(ctx)
		if err != nil {
			return err
		}
		for _, n := range f.Nodes {
			for _, d := range n.Devices {
				if d.Warm[runtime] > 0 {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a warm worker: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// manifest is the part of a runtime's runtime.json that a plain start needs.
type manifest struct {
	Name   string            `json:"name"`
	Python string            `json:"python"`
	Env    map[string]string `json:"env"`
}

// vllmArm starts plain `vllm serve`, with no warmd anywhere: the same python,
// environment and flags as the runtime's.
func vllmArm(m manifest, model, name string, args []string, logPath string) arm {
	return arm{name: "vllm", start: func(ctx context.Context) (string, func() error, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", nil, err
		}
		addr := l.Addr().String()
		_, port, _ := net.SplitHostPort(addr)
		l.Close()
		log, err := os.Create(logPath)
		if err != nil {
			return "", nil, err
		}
		defer log.Close()
		argv := append([]string{filepath.Join(filepath.Dir(m.Python), "vllm"), "serve", model, "--served-model-name", name, "--host", "127.0.0.1", "--port", port}, args...)
		cmd := exec.Command(argv[0], argv[1:]...)
		for k, v := range m.Env {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return "", nil, fmt.Errorf("start %s: %w", argv[0], err)
		}
		end := func() error {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
			return nil
		}
		return "http://" + addr, end, nil
	}}
}

// touch reads every file of a folder once, so that the page cache holds it.
func touch(dir string) error {
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	})
}

// needBytecode refuses a runtime whose sources have no compiled bytecode: every
// plain start would recompile 20,000 files and the comparison would flatter us.
func needBytecode(python string) error {
	found, _ := filepath.Glob(filepath.Join(filepath.Dir(python), "../lib/python3*/site-packages/vllm/__pycache__/*.pyc"))
	if len(found) == 0 {
		return errors.New("check runtime: vLLM has no compiled bytecode, so a plain start would look slower than it is; run `warmd runtime check NAME --fix`")
	}
	return nil
}

func summarise(arms []arm, all []sample) []summary {
	var out []summary
	for _, a := range arms {
		var secs []float64
		for _, s := range all {
			if s.Arm == a.name && !s.Discarded {
				secs = append(secs, s.Seconds)
			}
		}
		if len(secs) == 0 {
			continue
		}
		slices.Sort(secs)
		s := summary{Arm: a.name, N: len(secs), P50: quantile(secs, .5), P95: quantile(secs, .95), Min: secs[0], Max: secs[len(secs)-1]}
		out = append(out, s)
	}
	for i := range out {
		out[i].Ratio = out[0].P50 / out[i].P50
	}
	return out
}

// quantile is the nearest-rank quantile of sorted values.
func quantile(sorted []float64, q float64) float64 {
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func load1() (l float64) {
	b, _ := os.ReadFile("/proc/loadavg")
	_, _ = fmt.Sscan(string(b), &l)
	return l
}
