package coordinator

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	agentapi "warmd/agent/api"
	"warmd/placement"
)

// Bounds of questions that go to every node.
const (
	fanTime  = 2 * time.Second
	fanWidth = 64
	// missHeader names the nodes that did not answer: a partial answer says so.
	missHeader = "Warmd-Unreachable"
	maxMissed  = 20
)

// fan asks every living node and gathers what comes back in time.
func fan[T any](c *Coordinator, w http.ResponseWriter, r *http.Request, ask func(context.Context, *agentapi.Client) ([]T, error)) []T {
	ctx, cancel := context.WithTimeout(r.Context(), fanTime)
	defer cancel()
	var mu sync.Mutex
	out, missed := []T{}, []string{}
	var g errgroup.Group
	g.SetLimit(fanWidth)
	for _, n := range c.world.Fleet().Nodes {
		if !n.Alive {
			missed = append(missed, n.Node)
			continue
		}
		g.Go(func() error {
			cl, err := c.world.agent(n.Node, n.Addr)
			var got []T
			if err == nil {
				got, err = ask(ctx, cl)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				missed = append(missed, n.Node)
			}
			out = append(out, got...)
			return nil
		})
	}
	_ = g.Wait() // failures are named in the header
	if len(missed) > 0 {
		slices.Sort(missed)
		if more := len(missed) - maxMissed; more > 0 {
			missed = append(missed[:maxMissed], strconv.Itoa(more)+"-more")
		}
		w.Header().Set(missHeader, strings.Join(missed, ","))
	}
	return out
}

func (c *Coordinator) getWorkers(w http.ResponseWriter, r *http.Request) error {
	all := fan(c, w, r, func(ctx context.Context, cl *agentapi.Client) ([]agentapi.Worker, error) { return cl.Workers(ctx) })
	slices.SortFunc(all, func(a, b agentapi.Worker) int {
		if d := strings.Compare(a.Node, b.Node); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
	agentapi.WriteJSON(w, http.StatusOK, all)
	return nil
}

func (c *Coordinator) getTraces(w http.ResponseWriter, r *http.Request) error {
	all := fan(c, w, r, func(ctx context.Context, cl *agentapi.Client) ([]placement.Trace, error) { return cl.Traces(ctx) })
	slices.SortStableFunc(all, func(a, b placement.Trace) int { return b.Begin.Compare(a.Begin) })
	agentapi.WriteJSON(w, http.StatusOK, all)
	return nil
}

func (c *Coordinator) getTrace(w http.ResponseWriter, r *http.Request) error {
	rec, err := c.find(w, r)
	if err != nil {
		return err
	}
	cl, err := c.world.holder(rec)
	if err != nil {
		return err
	}
	tr, err := cl.Trace(r.Context(), rec.ID)
	if err != nil {
		return err
	}
	agentapi.WriteJSON(w, http.StatusOK, tr)
	return nil
}

// getLogs passes the worker's log on from the node that runs it.
func (c *Coordinator) getLogs(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	tail, follow := 200, q.Get("follow") != ""
	if v := q.Get("tail"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return &placement.FieldError{Field: "tail", Problem: "must be a number of lines"}
		}
		tail = n
	}
	rec, err := c.find(w, r)
	if err != nil {
		return err
	}
	cl, err := c.world.holder(rec)
	if err != nil {
		return err
	}
	agentapi.Patient(w)
	body, err := cl.Logs(r.Context(), rec.ID, tail, follow)
	if err != nil {
		return err
	}
	defer body.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	rc := http.NewResponseController(w)
	buf := make([]byte, 16<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			_ = rc.SetWriteDeadline(time.Now().Add(10 * time.Second)) // a reader that does not read is dropped
			if _, err := w.Write(buf[:n]); err != nil {
				return nil
			}
			_ = rc.Flush()
		}
		if err == io.EOF || r.Context().Err() != nil {
			return nil
		}
		if err != nil {
			c.log.Debug("log stream broke", "placement", rec.ID, "error", err)
			return nil
		}
	}
}

func (c *Coordinator) drain(on bool) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		node, err := url.PathUnescape(r.PathValue("node"))
		if err != nil {
			return &placement.FieldError{Field: "node", Problem: err.Error()}
		}
		cl, err := c.world.agentOf(node)
		if err != nil {
			return err
		}
		cap1, err := cl.SetDrain(r.Context(), on)
		if err != nil {
			return err
		}
		c.opt.View.Apply(cap1)
		verb := "undrain"
		if on {
			verb = "drain"
		}
		c.events.add(placement.Event{Node: node, Kind: "node." + verb, Message: verb + " on request"})
		c.placer.Wake()
		agentapi.WriteJSON(w, http.StatusOK, cap1)
		return nil
	}
}

// getEvents merges our own events with those of the nodes, by time. Their numbers are
// each node's own.
func (c *Coordinator) getEvents(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Get("follow") != "" {
		return c.followEvents(w, r)
	}
	all := fan(c, w, r, func(ctx context.Context, cl *agentapi.Client) (got []placement.Event, err error) {
		err = cl.Events(ctx, false, func(e placement.Event) bool { got = append(got, e); return true })
		return got, err
	})
	own, _ := c.events.since(0)
	all = append(all, own...)
	slices.SortStableFunc(all, func(a, b placement.Event) int { return a.At.Compare(b.At) })
	once := newOnce()
	all = slices.DeleteFunc(all, func(e placement.Event) bool { return !once.first(e) })
	agentapi.WriteJSON(w, http.StatusOK, all)
	return nil
}

// followEvents streams our events and those of every node that is alive when the
// stream begins; a node whose stream breaks is asked again.
func (c *Coordinator) followEvents(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	merged := make(chan placement.Event, 256)
	send := func(e placement.Event) bool {
		select {
		case merged <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { c.events.follow(ctx, 0, send) })
	for _, n := range c.world.Fleet().Nodes {
		if !n.Alive {
			continue
		}
		wg.Go(func() { c.followNode(ctx, n, send) })
	}
	lines := agentapi.NewLines(w, http.StatusOK)
	once := newOnce()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-merged:
			if once.first(e) && lines.Write(e) != nil {
				return nil
			}
		}
	}
}

func (c *Coordinator) followNode(ctx context.Context, n placement.NodeView, send func(placement.Event) bool) {
	var seen placement.Event
	for ctx.Err() == nil {
		if cl, err := c.world.agent(n.Node, n.Addr); err == nil {
			_ = cl.Events(ctx, true, func(e placement.Event) bool {
				if e.Seq <= seen.Seq && !e.At.After(seen.At) {
					return true // told already, before the stream broke; a restarted agent counts anew
				}
				seen = e
				return send(e)
			})
		}
		select {
		case <-ctx.Done():
		case <-time.After(fanTime):
		}
	}
}
