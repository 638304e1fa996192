package worker

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// The roles of a process that a zygote started.
const (
	roleEngine = "engine"
	roleAPI    = "api"
	roleServe  = "serve" // one process that is the whole engine: cold starts, exec runtimes
)

// zygoteHello is what a zygote says of itself.
type zygoteHello struct {
	Proto      int      `json:"proto"`
	Kind       string   `json:"kind"`
	Version    string   `json:"version"`
	PID        int      `json:"pid"`
	Start      uint64   `json:"start"`
	Runtime    string   `json:"runtime"`
	Generation int      `json:"generation"`
	Caps       []string `json:"caps"`
	ImportS    float64  `json:"import_s"`
	Children   []child  `json:"children"`
	Exits      []exit   `json:"exits"`
}

// child is a living process that a zygote started.
type child struct {
	Proc
	Worker string `json:"worker"`
	Role   string `json:"role"`
}

// exit is the end of a child. Exactly one of Code and Signal is set.
type exit struct {
	child
	Code   *int   `json:"code"`
	Signal *int   `json:"signal"`
	Cause  string `json:"cause"` // exit: by itself; pair: with its other half; kill: asked for
	TNS    int64  `json:"t_ns"`
}

type forkRequest struct {
	Worker string            `json:"worker"`
	Role   string            `json:"role"`
	Socket string            `json:"socket"`
	Log    string            `json:"log"`
	Env    map[string]string `json:"env,omitempty"`
	Spec   forkDevice        `json:"spec"`
}

type forkDevice struct {
	Device  string `json:"device"`
	Visible string `json:"cuda_visible_devices,omitempty"`
}

type spawnRequest struct {
	Worker string            `json:"worker"`
	Role   string            `json:"role"`
	Argv   []string          `json:"argv"`
	Env    map[string]string `json:"env"`
	Log    string            `json:"log"`
	Cwd    string            `json:"cwd,omitempty"`
}

type killRequest struct {
	Proc
	Signal int `json:"signal"`
}

func (c *conn) helloZygote(ctx context.Context) (zygoteHello, error) {
	var h zygoteHello
	if err := c.call(ctx, "hello", map[string]int{"proto": Proto}, &h); err != nil {
		return h, err
	}
	if h.Proto != Proto {
		return h, fmt.Errorf("greet zygote: it speaks protocol %d, this agent speaks %d", h.Proto, Proto)
	}
	return h, nil
}

func (c *conn) fork(ctx context.Context, r forkRequest) (p Proc, err error) {
	return p, c.call(ctx, "fork", r, &p)
}

func (c *conn) spawn(ctx context.Context, r spawnRequest) (p Proc, err error) {
	return p, c.call(ctx, "spawn", r, &p)
}

func (c *conn) children(ctx context.Context) ([]child, error) {
	var out struct {
		Children []child `json:"children"`
	}
	return out.Children, c.call(ctx, "children", nil, &out)
}

// kill signals a process on our behalf: it may belong to a user we may not touch.
// A process that is gone already is ErrGone.
func (c *conn) kill(ctx context.Context, p Proc, sig syscall.Signal) error {
	err := c.call(ctx, "kill", killRequest{p, int(sig)}, nil)
	if refusedWith(err, "gone") {
		return errors.Join(ErrGone, err)
	}
	return err
}

func (c *conn) stopZygote(ctx context.Context) error { return c.call(ctx, "stop", nil, nil) }
