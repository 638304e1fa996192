package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

func placeCommand() command {
	return command{
		name: "place", args: "MODEL", min: 1, max: 1, complete: "dirs",
		short: "put a model on a worker and wait until it answers",
		long: `MODEL is a model folder on the node: an absolute path, or a name under one of the
node's model roots. ./ and ../ are taken from the current folder. A model that sleeps,
and was asked for in the same words, is woken: the answer is the placement it has.

place waits until a token has come out of the endpoint, then prints the endpoint
and a curl line that works as it stands. Ctrl-C ends the waiting, not the placement.`,
		examples: []example{
			{"warmctl place /models/opt-125m", "the warmest start there is"},
			{"warmctl place llama-3-8b --runtime vllm --arg=--max-model-len=4096 --env VLLM_LOGGING_LEVEL=DEBUG", "with engine arguments and environment"},
			{"warmctl place /models/opt-125m --start cold --name cold", "a plain `vllm serve`, to compare"},
			{"warmctl place /models/opt-125m --dry-run", "which node would take it, and why not the others"},
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "runtime", Usage: "`NAME`: runtime to use; default: the only one a node has"},
			&cli.StringFlag{Name: "name", Usage: "`NAME`: what clients call the model; default: the last element of MODEL"},
			&cli.StringFlag{Name: "node", Usage: "`NODE`: the only node that will do"},
			&cli.StringFlag{Name: "start", Value: "auto", Usage: "`MODE`: auto (the warmest there is), warm (or refuse), cold (the engine's stock start)"},
			&cli.StringSliceFlag{Name: "arg", Usage: "`ARG`: engine argument, as in --arg=--max-model-len=512; may be given many times"},
			&cli.StringSliceFlag{Name: "env", Usage: "`K=V`: addition to the engine's environment; may be given many times"},
			&cli.StringFlag{Name: "memory", Usage: "`SIZE`: device memory it needs, as in 8GiB; default: a whole slot"},
			&cli.BoolFlag{Name: "wait", Value: true, Usage: "wait until it answers (the default)"},
			&cli.BoolFlag{Name: "no-wait", Usage: "come back as soon as an agent has accepted it"},
			&cli.BoolFlag{Name: "wait-capacity", Usage: "queue for a slot, within the timeout, when none is free"},
			&cli.StringFlag{Name: "timeout", Usage: "`TIME`: limit for all of it, request to first token: 90s, 2m; default 5m"},
			&cli.StringFlag{Name: "request-id", Usage: "`ID`: makes it idempotent: the same id names the same placement for 24 h"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only say which nodes would take it, best first; place nothing"},
			&cli.BoolFlag{Name: "explain", Usage: "say which nodes would take it before placing it"},
			&cli.BoolFlag{Name: "verbose", Usage: "print every step as a line on stderr"},
		},
		run: runPlace,
	}
}

// placed is the JSON answer of place --explain.
type placed struct {
	Decision  *placement.Decision  `json:"decision,omitempty"`
	Placement *placement.Placement `json:"placement,omitempty"`
}

func runPlace(c *call) error {
	req, err := placeRequest(c)
	if err != nil {
		return err
	}
	var out placed
	if c.flags.Bool("dry-run") || c.flags.Bool("explain") {
		d, err := onCoordinator(c, func(k *coordapi.Client) (placement.Decision, error) { return k.DryRun(c.ctx, req) })
		if err != nil {
			return err
		}
		if d.Candidates == nil {
			d.Candidates = []placement.Candidate{} // a list in JSON, also when nobody would
		}
		out.Decision = &d
		if c.flags.Bool("dry-run") && c.json {
			if err := c.printJSON(d); err != nil {
				return err
			}
		}
		if !c.json {
			c.printDecision(d)
		}
		if c.flags.Bool("dry-run") {
			return noCandidate(d)
		}
	}
	p, note, err := c.place(req)
	if err != nil {
		return err
	}
	if c.json {
		if out.Decision == nil {
			return c.printJSON(p)
		}
		out.Placement = &p
		return c.printJSON(out)
	}
	c.printPlaced(p, note)
	return nil
}

// envPairs reads --env; nil when it was not given.
func envPairs(list []string) (map[string]string, error) {
	var env map[string]string
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return nil, usagef("--env %q must be K=V", kv)
		}
		if _, twice := env[k]; twice {
			return nil, usagef("--env %s is given twice", k)
		}
		if env == nil {
			env = map[string]string{}
		}
		env[k] = v
	}
	return env, nil
}

// placeRequest makes the request of the flags.
func placeRequest(c *call) (placement.Request, error) {
	f := c.flags
	r := placement.Request{
		ID: f.String("request-id"), Model: c.args[0], Name: f.String("name"), Runtime: f.String("runtime"), Node: f.String("node"),
		Start: placement.Start(f.String("start")), Args: f.StringSlice("arg"), WaitCapacity: f.Bool("wait-capacity"),
		Traceparent: c.Getenv("TRACEPARENT"),
	}
	if r.ID == "" {
		// Every request has an id, so that a broken connection can be followed up
		// without placing the model twice.
		r.ID = "ctl-" + strings.ToLower(rand.Text())
	}
	if m := r.Model; m == "." || m == ".." || strings.HasPrefix(m, "./") || strings.HasPrefix(m, "../") {
		abs, err := filepath.Abs(m)
		if err != nil {
			return r, usagef("find model folder: %v", err)
		}
		r.Model = abs
	}
	var err error
	if r.Env, err = envPairs(f.StringSlice("env")); err != nil {
		return r, err
	}
	if s := f.String("memory"); s != "" {
		n, err := parseSize(s)
		if err != nil {
			return r, usagef("--memory %v", err)
		}
		r.MemoryBytes = n
	}
	if s := f.String("timeout"); s != "" {
		d, err := parseTime(s)
		if err != nil {
			return r, usagef("--timeout %v", err)
		}
		if d <= 0 {
			return r, usagef("--timeout must be more than 0")
		}
		r.TimeoutSeconds = d.Seconds()
	}
	if err := r.Validate(); err != nil {
		return r, err
	}
	return r, nil
}

// noCandidate is the error of a dry run that found nobody.
func noCandidate(d placement.Decision) error {
	if len(d.Candidates) > 0 {
		return nil
	}
	if len(d.Passed) == 0 {
		return placement.Errorf(placement.CodeNoCapacity, "the coordinator sees no node").WithHint("warmctl nodes; start an agent, or `warmd dev`")
	}
	code := d.Passed[0].Code
	for _, p := range d.Passed {
		if p.Code != code {
			code = placement.CodeNoCapacity
		}
	}
	e := placement.Errorf(code, "no node would take it: %s: %s", d.Passed[0].Node, d.Passed[0].Reason)
	switch code {
	case placement.CodeUnknownRuntime:
		return e.WithHint("warmctl nodes lists the runtimes; name one with --runtime")
	case placement.CodeNotFound:
		return e.WithHint("warmctl nodes lists the nodes")
	}
	return e.WithHint("warmctl capacity shows what is free; --wait-capacity queues for a slot")
}

// printDecision prints what placement.Choose said: who would take it, who not and why.
func (c *call) printDecision(d placement.Decision) {
	if len(d.Candidates) > 0 {
		t := newTable(">#", "NODE", "DEVICE", "RUNTIME", "TIER", "WHY")
		for i, k := range d.Candidates {
			t.add(fmt.Sprint(i+1), k.Node, shortDevice(k.Device), k.Runtime, string(k.Tier), k.Why)
		}
		t.write(c.Out, "")
	}
	if len(d.Passed) > 0 {
		fmt.Fprintln(c.Out, "passed over:")
		t := newTable("NODE", "CODE", "REASON")
		for _, p := range d.Passed {
			t.add(p.Node, string(p.Code), p.Reason)
		}
		t.write(c.Out, "  ")
	}
}

// printPlaced prints what to do with a placement.
func (c *call) printPlaced(p placement.Placement, note string) {
	name := p.Request.ServedName()
	where := p.Node + "/" + shortDevice(p.Device)
	if p.State != placement.Ready {
		fmt.Fprintf(c.Out, "%s (%s) is %s on %s\n", name, p.ID, p.State, where)
		fmt.Fprintf(c.Out, "  follow   warmctl describe %s\n  release  warmctl release %s\n", p.ID, p.ID)
		return
	}
	fmt.Fprintf(c.Out, "%s (%s) answers on %s\n", name, p.ID, where)
	start := string(p.Tier)
	if p.StartSeconds > 0 {
		start += ", first token after " + seconds(p.StartSeconds)
	}
	fields(c.Out, "  ", "start", start, "note", note, "endpoint", p.Endpoint, "try", curlLine(p), "phases", "warmctl trace "+p.ID, "release", "warmctl release "+p.ID)
}

// curlLine is a completion request that a shell runs as it stands.
func curlLine(p placement.Placement) string {
	body, _ := json.Marshal(struct {
		Model     string `json:"model"`
		Prompt    string `json:"prompt"`
		MaxTokens int    `json:"max_tokens"`
	}{p.Request.ServedName(), "Hello, my name is", 16})
	return fmt.Sprintf("curl %s -H 'Content-Type: application/json' -d %s", quote(strings.TrimRight(p.Endpoint, "/")+"/v1/completions", false), quote(string(body), true))
}

// quote makes one word of a shell line.
func quote(s string, always bool) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/:._-@%+", r)
	}
	if !always && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
