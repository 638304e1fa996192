package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"
)

// patience bounds a zygote's silence. Importing a whole engine from a cold disk
// takes minutes; a zygote that is up answers within milliseconds.
type patience struct {
	listen    time.Duration // from the launch to the first connect
	imports   time.Duration // from the connect to the answer to hello
	pingEvery time.Duration
	ping      time.Duration // for the answer
}

var defaultPatience = patience{listen: 20 * time.Second, imports: 10 * time.Minute, pingEvery: 20 * time.Second, ping: 30 * time.Second}

// redialTime is the pause before a dropped connection is opened again.
const redialTime = 100 * time.Millisecond

// genState is where a generation stands: starting -> up -> gone, or foreign
// when it speaks another protocol than this agent.
type genState string

const (
	genStarting genState = "starting"
	genUp       genState = "up"
	genForeign  genState = "foreign"
	genGone     genState = "gone"
)

// generation is one zygote of a runtime: one that we launched, or one that we
// found. Its goroutine, run, is the one writer of the fields below the line.
type generation struct {
	rt       *Runtime
	n        int
	kind     string // vllm, or exec: one that only spawns
	print    string // fingerprint of what was started; "" when not known
	unit     Unit
	launched bool
	first    chan struct{} // closed at the first hello, or when it is gone

	// guarded by rt.mu
	state   genState
	proc    Proc
	conn    *conn // nil unless up
	upSince time.Time
	problem string // why it is gone
	holds   int    // requests under way: a held generation is not retired
	exits   int    // children that we were told have ended
}

// run follows the zygote until it is gone or ctx ends. It never ends a zygote,
// except one that has hung.
func (g *generation) run(ctx context.Context) {
	err := g.follow(ctx)
	if ctx.Err() == nil {
		g.rt.log.Warn("zygote is gone", "generation", g.n, "cause", err)
	}
	g.update(func() {
		g.state, g.conn = genGone, nil
		if ctx.Err() == nil && err != nil {
			g.problem = err.Error()
		}
	})
	g.settled()
	if ctx.Err() == nil {
		g.rt.clear(ctx, g.n)
	}
}

func (g *generation) follow(ctx context.Context) error {
	for {
		c, err := g.connect(ctx)
		if err != nil {
			return err
		}
		err = g.talk(ctx, c)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errHung) {
			return err // that is why, and not the signal that it died of
		}
		if !g.survives(ctx) {
			return g.obituary(err)
		}
		g.rt.log.Info("zygote dropped the connection, connecting again", "generation", g.n, "cause", err)
		pause(ctx, redialTime)
	}
}

// connect dials until the zygote listens. One that was not launched by us, and is
// not known to live, listens now or never.
func (g *generation) connect(ctx context.Context) (*conn, error) {
	began := time.Now()
	for delay := 2 * time.Millisecond; ; delay = min(2*delay, 50*time.Millisecond) {
		c, err := dial(ctx, g.unit.Socket)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		known := g.proc.PID > 0
		switch {
		case known && !g.proc.Alive(), !known && !g.launched:
			return nil, g.obituary(err)
		case !known && g.exited() != "":
			return nil, g.obituary(err)
		case time.Since(began) > g.rt.patience.listen:
			if p, ok := listener(g.unit.Socket); ok {
				g.update(func() { g.proc = p })
			}
			return nil, g.hung(ctx, g.rt.patience.listen)
		}
		pause(ctx, delay)
	}
}

// talk greets and then serves one connection until it ends.
func (g *generation) talk(ctx context.Context, c *conn) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.read(g.onEvent)
	}()
	defer func() {
		g.update(func() { g.conn = nil })
		c.close()
		<-ended
	}()
	if p, ok := c.peer(); ok && g.proc.PID == 0 {
		g.update(func() { g.proc = p })
	}
	greet, cancel := context.WithTimeout(ctx, g.rt.patience.imports)
	h, err := c.helloZygote(greet)
	cancel()
	if err != nil {
		return g.notGreeted(ctx, c, err)
	}
	if h.Runtime != g.rt.name || h.Generation != g.n {
		return fmt.Errorf("greet zygote: %s is %s.%d, not ours", g.unit.Socket, h.Runtime, h.Generation)
	}
	g.update(func() {
		g.state, g.conn, g.proc, g.kind = genUp, c, Proc{h.PID, h.Start}, h.Kind
		g.upSince = time.Now()
	})
	g.saveUnit()
	g.settled()
	g.rt.log.Info("zygote is up", "generation", g.n, "pid", h.PID, "import_s", h.ImportS, "children", len(h.Children))
	for _, x := range h.Exits {
		g.rt.route(x)
	}
	return g.attend(ctx, c)
}

// attend pings until the connection ends. A zygote that does not answer
// has hung: it is killed, its workers live on.
func (g *generation) attend(ctx context.Context, c *conn) error {
	tick := time.NewTicker(g.rt.patience.pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.done:
			return c.cause()
		case <-tick.C:
			ask, cancel := context.WithTimeout(ctx, g.rt.patience.ping)
			err := c.call(ask, "ping", nil, nil)
			cancel()
			if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				return g.hung(ctx, g.rt.patience.ping)
			}
		}
	}
}

// notGreeted decides what a failed hello means.
func (g *generation) notGreeted(ctx context.Context, c *conn, err error) error {
	var refusal *RemoteError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return g.hung(ctx, g.rt.patience.imports)
	case c.cause() != nil && !errors.As(err, &refusal):
		return err
	}
	// It answers, but in another protocol: of an older or newer warmd. Its workers
	// are served through their own sockets, new ones need a new generation.
	g.update(func() { g.state, g.problem = genForeign, err.Error() })
	g.settled()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		return c.cause()
	}
}

// hung kills a zygote that does not answer, by whatever may signal it.
func (g *generation) hung(ctx context.Context, after time.Duration) error {
	if err := g.rt.signal(ctx, g.n, g.proc, syscall.SIGKILL); err != nil && !errors.Is(err, ErrGone) {
		return fmt.Errorf("zygote %w for %v and cannot be killed: %w", errHung, after, err)
	}
	return fmt.Errorf("zygote %w for %v and was killed%s", errHung, after, g.logWord())
}

var errHung = errors.New("did not answer")

func (g *generation) onEvent(kind string, raw []byte) {
	var x exit
	if kind != "exit" || json.Unmarshal(raw, &x) != nil {
		return // a later zygote may say more than we know
	}
	g.rt.route(x)
	g.update(func() { g.exits++ }) // it may have been the last child of a generation that is to retire
}

// survives tells a dropped connection from a dead zygote. The kernel closes a
// dying process's sockets before it marks it dead, so it gets a moment.
func (g *generation) survives(ctx context.Context) bool {
	w, err := g.proc.open()
	if err != nil {
		return false
	}
	defer w.close()
	wait, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	return w.wait(wait) != nil
}

// obituary says why the zygote is gone, as well as that can be known.
func (g *generation) obituary(err error) error {
	cause := g.exited()
	for end := time.Now().Add(200 * time.Millisecond); cause == "" && g.launched && time.Now().Before(end); cause = g.exited() {
		pause(context.Background(), 5*time.Millisecond)
	}
	if cause == "" {
		cause = fmt.Sprintf("ended (%v)", err)
	}
	return fmt.Errorf("zygote %s%s", cause, g.logWord())
}

func (g *generation) exited() string {
	if r, ok := g.rt.cfg.Launcher.(exitReporter); ok {
		if cause, ended := r.Exited(g.unit); ended {
			return cause
		}
	}
	return ""
}

func (g *generation) logWord() string {
	return colon(errorLine(tail(g.unit.Log, 40))) + " (log: " + g.unit.Log + ")"
}

func (g *generation) dir() string { return filepath.Dir(g.unit.Socket) }

// update changes the guarded fields and tells everybody who waits.
func (g *generation) update(f func()) {
	g.rt.mu.Lock()
	f()
	g.rt.mu.Unlock()
	g.rt.notify()
}

// settled closes first; only run's goroutine calls it.
func (g *generation) settled() {
	select {
	case <-g.first:
	default:
		close(g.first)
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
