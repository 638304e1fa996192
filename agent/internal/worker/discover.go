package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// discoverTime bounds how long a new agent waits for zygotes that live but do not
// answer: one that imports, or hangs. Its workers are found by their own files.
const discoverTime = 700 * time.Millisecond

// discover connects to every generation that lives and clears away the rest.
func (r *Runtime) discover(ctx context.Context) {
	var living []*generation
	for _, n := range r.generations() {
		r.tellLastWords(ctx, n)
		z := loadUnit(r.genDir(n))
		g := r.newGeneration(n, z.Kind)
		g.print = z.Fingerprint
		c, err := dial(ctx, g.unit.Socket)
		if err == nil {
			c.close()
		} else if p, ok := listener(g.unit.Socket); ok {
			g.proc = p // started by an agent that was killed right after
		} else {
			r.endLeftovers(ctx, n)
			r.clear(ctx, n)
			continue
		}
		living = append(living, g)
		r.add(g)
	}
	t := time.NewTimer(discoverTime)
	defer t.Stop()
	for _, g := range living {
		select {
		case <-g.first:
		case <-t.C:
			r.log.Warn("zygote does not answer yet", "generation", g.n)
			return
		case <-ctx.Done():
			return
		}
	}
}

// clear removes what a dead generation left behind, once no worker of it lives.
func (r *Runtime) clear(ctx context.Context, n int) {
	r.mu.Lock()
	g, mine := r.gens[n], 0
	for _, w := range r.workers {
		if w.gen == n {
			mine++
		}
	}
	followed := g != nil && g.state != genGone
	r.mu.Unlock()
	if followed || mine > 0 {
		return
	}
	for _, rec := range r.onDisk(ctx, n) {
		if len(rec.living()) > 0 {
			return
		}
	}
	if err := os.RemoveAll(r.genDir(n)); err != nil {
		r.log.Warn("old generation not removed", "generation", n, "err", err)
	}
}

// endLeftovers ends what workers left in their cgroups that died, with their zygote,
// while no agent was there.
func (r *Runtime) endLeftovers(ctx context.Context, n int) {
	for _, rec := range r.onDisk(ctx, n) {
		if group := rec.group(); len(rec.living()) == 0 && len(cgroupMembers(group)) > 0 {
			r.log.Warn("a dead worker left processes behind, ending them", "worker", rec.ID, "processes", cgroupMembers(group))
			r.task(func(ctx context.Context) { r.extinguish(ctx, n, nil, group) })
		}
	}
}

// Found lists every worker of every generation of which a process still lives,
// ours or not: what the zygotes say, what lies beside the sockets, and what the
// sockets answer. Adopt takes any of them. It waits until Run has looked around.
func (r *Runtime) Found(ctx context.Context) ([]Record, error) {
	if err := r.lookedAround(ctx); err != nil {
		return nil, fmt.Errorf("find workers of %s: %w", r.name, err)
	}
	return r.find(ctx, r.ask), nil
}

// lookedAround waits until Run knows which generations live; that has precedence
// over an end of ctx.
func (r *Runtime) lookedAround(ctx context.Context) error {
	select {
	case <-r.found:
		return nil
	default:
	}
	select {
	case <-r.found:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// find lists living workers; ask lists what the zygote of a generation forked.
func (r *Runtime) find(ctx context.Context, ask func(context.Context, int) []child) []Record {
	var all []Record
	for _, n := range r.generations() {
		recs := map[string]Record{}
		for _, rec := range r.onDisk(ctx, n) {
			recs[rec.ID] = rec
		}
		for _, kid := range ask(ctx, n) {
			recs[kid.Worker] = r.merge(recs[kid.Worker], n, kid)
		}
		for _, rec := range recs {
			if len(rec.living()) > 0 {
				all = append(all, rec)
			}
		}
	}
	slices.SortFunc(all, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// ask lists the children of a generation's zygote, none when it is not up.
func (r *Runtime) ask(ctx context.Context, n int) []child {
	r.mu.Lock()
	g := r.gens[n]
	var c *conn
	if g != nil {
		c = g.conn
	}
	r.mu.Unlock()
	if c == nil {
		return nil
	}
	// It greeted a moment ago: only a host that is busy makes it late, and a child that
	// left no record is known to nobody else.
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	kids, err := c.children(ctx)
	if err != nil {
		r.log.Warn("zygote does not list its children", "generation", n, "err", err)
	}
	return kids
}

// merge adds what a zygote says of one child to what is known of its worker.
func (r *Runtime) merge(rec Record, n int, kid child) Record {
	if rec.ID == "" {
		rec = Record{
			ID: kid.Worker, Runtime: r.name, Generation: n, Boot: bootID(), State: Spawning,
			Log: r.logPath(kid.Worker), Since: time.Now(),
		}
	}
	switch kid.Role {
	case roleAPI:
		rec.API = kid.Proc
	case roleServe:
		rec.Engine, rec.Cold = kid.Proc, true
	default:
		rec.Engine = kid.Proc
	}
	return rec
}

// onDisk lists the workers of a generation that left a record, or whose sockets
// answer: an agent may have been killed between a fork and the record of it.
func (r *Runtime) onDisk(ctx context.Context, n int) (recs []Record) {
	entries, _ := os.ReadDir(r.genDir(n))
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(r.genDir(n), e.Name())
		rec, ok := loadRecord(dir)
		whole := ok && rec.Engine.PID > 0 && (rec.Cold || rec.API.PID > 0)
		if !whole {
			rec = r.probe(ctx, rec, n, e.Name())
		}
		if rec.Engine.PID > 0 || rec.API.PID > 0 {
			recs = append(recs, rec)
		}
	}
	return recs
}

func (r *Runtime) probe(ctx context.Context, rec Record, n int, id string) Record {
	ctx, cancel := context.WithTimeout(ctx, discoverTime/2)
	defer cancel()
	for _, role := range []string{roleEngine, roleAPI} {
		h, err := askHalf(ctx, r.halfSocket(n, id, role))
		if err == nil && h.Worker == id {
			rec = r.merge(rec, n, child{Proc{h.PID, h.Start}, id, role})
		}
	}
	return rec
}

// askHalf says hello to a half and hangs up.
func askHalf(ctx context.Context, socket string) (h halfHello, err error) {
	c, err := dial(ctx, socket)
	if err != nil {
		return h, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.read(func(string, []byte) {})
	}()
	err = c.call(ctx, "hello", map[string]int{"proto": Proto}, &h)
	c.close()
	<-ended
	return h, err
}

// halfHello is what a half says of itself.
type halfHello struct {
	Proc
	Proto     int               `json:"proto"`
	Worker    string            `json:"worker"`
	Role      string            `json:"role"`
	State     State             `json:"state"`
	Placement string            `json:"placement"`
	Attempt   int               `json:"attempt"`
	Phases    []json.RawMessage `json:"phases"`
	Error     *halfError        `json:"error"`
}

type halfError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  string `json:"detail"`
}

func (r *Runtime) workerDir(n int, id string) string { return filepath.Join(r.genDir(n), id) }

func (r *Runtime) halfSocket(n int, id, role string) string {
	return filepath.Join(r.workerDir(n, id), role+".sock")
}
