package worker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"warmd/agent/runtime"
)

const (
	zygoteSocket = "zygote.sock"
	zygoteFile   = "zygote.json"
)

// unit is what is started for generation n.
func (r *Runtime) unit(n int, kind string) Unit {
	m := r.cfg.Manifest
	dir := r.genDir(n)
	u := Unit{
		Runtime: r.name, Generation: n, Env: m.Environ(), Dir: dir,
		Log: filepath.Join(r.logDir(), zygoteLog(n)), Socket: filepath.Join(dir, zygoteSocket),
	}
	u.Argv = append(r.command(kind), "--socket", u.Socket, "--generation", strconv.Itoa(n))
	return u
}

// command is the part of a zygote's command line that all generations share.
func (r *Runtime) command(kind string) []string {
	m := r.cfg.Manifest
	argv := []string{m.Interpreter(), filepath.Join(r.cfg.ScriptDir, "zygote.py"), "--runtime", r.name, "--kind", kind}
	for flag, file := range map[string]string{"--profile": m.Path(m.Profile), "--manifest": filepath.Join(m.Dir, "runtime.json")} {
		if fi, err := os.Stat(file); kind == runtime.KindVLLM && m.Dir != "" && err == nil && fi.Mode().IsRegular() {
			argv = append(argv, flag, file)
		}
	}
	return argv
}

// fingerprint is remembered: it is asked for at every change.
func (r *Runtime) fingerprint(kind string) string {
	if kind == runtime.KindExec {
		return r.execPrint()
	}
	return r.vllmPrint()
}

// print names everything a zygote of today would be started from. A living
// one with another fingerprint keeps its workers and gets no new ones.
func (r *Runtime) print(kind string) string {
	argv := r.command(kind)
	slices.Sort(argv[3:]) // flags come from a map
	// The scripts by their content: a package puts every version into one folder.
	b, _ := json.Marshal([]any{argv, r.cfg.Manifest.Environ(), r.cfg.Manifest.ProfileKey, Proto, runtime.ScriptsSum()})
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

func (r *Runtime) genDir(n int) string {
	return filepath.Join(r.cfg.RunDir, r.name+"."+strconv.Itoa(n))
}

// generations lists the folders of all generations, oldest first.
func (r *Runtime) generations() (ns []int) {
	entries, _ := os.ReadDir(r.cfg.RunDir)
	for _, e := range entries {
		if n, err := strconv.Atoi(strings.TrimPrefix(e.Name(), r.name+".")); err == nil && n > 0 && r.genDir(n) == filepath.Join(r.cfg.RunDir, e.Name()) {
			ns = append(ns, n)
		}
	}
	slices.Sort(ns)
	return ns
}

// zygoteRecord is zygote.json: written before the launch, completed at the first
// hello, so that an end of everything can find a zygote that does not answer.
type zygoteRecord struct {
	Kind        string `json:"kind"`
	Fingerprint string `json:"fingerprint"`
	Proc        Proc   `json:"proc,omitzero"`
	Boot        string `json:"boot"`
}

func (g *generation) saveUnit() {
	b, err := json.Marshal(zygoteRecord{g.kind, g.print, g.proc, bootID()})
	if err == nil {
		err = os.WriteFile(filepath.Join(g.dir(), zygoteFile), b, 0o640)
	}
	if err != nil {
		g.rt.log.Warn("zygote record not written", "generation", g.n, "err", err)
	}
}

func loadUnit(dir string) (z zygoteRecord) {
	if b, err := os.ReadFile(filepath.Join(dir, zygoteFile)); err != nil || json.Unmarshal(b, &z) != nil {
		return zygoteRecord{}
	}
	if z.Boot != bootID() {
		z.Proc = Proc{}
	}
	return z
}

func (r *Runtime) newGeneration(n int, kind string) *generation {
	return &generation{
		rt: r, n: n, kind: kind, unit: r.unit(n, kind), state: genStarting, first: make(chan struct{}),
	}
}

// launch starts the next generation. Its number is claimed by making its folder,
// so no two launches share one.
func (r *Runtime) launch(ctx context.Context, kind string) (*generation, error) {
	r.launching.Lock()
	defer r.launching.Unlock()
	n := r.freeNumber()
	r.mu.Lock()
	if r.closing || r.over {
		r.mu.Unlock()
		return nil, fmt.Errorf("start zygote of %s: %w", r.name, ErrNotRunning)
	}
	r.mu.Unlock()
	for {
		err := os.Mkdir(r.genDir(n), 0o770)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("start zygote %s.%d: %w", r.name, n, err)
		}
		n++
	}
	r.mu.Lock()
	r.lastGen = n
	r.mu.Unlock()
	r.pruneLogs()
	g := r.newGeneration(n, kind)
	g.launched, g.print = true, r.fingerprint(kind)
	g.saveUnit()
	if err := r.cfg.Launcher.Start(ctx, g.unit); err != nil {
		_ = os.RemoveAll(g.dir())
		return nil, err
	}
	r.log.Info("zygote started", "generation", n, "kind", kind)
	r.add(g)
	return g, nil
}

// freeNumber is above every generation that left a folder or a log: a number names a
// systemd unit, too, and the one before may still be on its way out.
func (r *Runtime) freeNumber() int {
	r.mu.Lock()
	last := r.lastGen
	r.mu.Unlock()
	if ns := r.generations(); len(ns) > 0 {
		last = max(last, ns[len(ns)-1])
	}
	logs, _ := os.ReadDir(r.logDir())
	for _, e := range logs {
		if n, ok := zygoteOfLog(e.Name()); ok {
			last = max(last, n)
		}
	}
	return last + 1
}

// add makes a generation known and follows it.
func (r *Runtime) add(g *generation) {
	r.mu.Lock()
	r.gens[g.n] = g
	r.mu.Unlock()
	if !r.task(g.run) {
		g.settled()
	}
	r.notify()
}

// retire ends zygotes that nobody needs: not current, no living child, nothing
// under way. One that holds workers lives as long as they do.
func (r *Runtime) retire() {
	current, closing := r.current(r.cfg.Manifest.Kind)
	if closing || current == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if current.state != genUp {
		return
	}
	for _, g := range r.gens {
		if g == current || g.conn == nil || g.holds > 0 || r.ctx.Err() != nil || r.over {
			continue
		}
		g.holds++ // nobody retires it twice
		c, exits := g.conn, g.exits
		r.tasks.Go(func() {
			r.end(g, c, exits)
		})
	}
}

// end stops a zygote if it has no children. It asks the zygote itself: only that
// knows of a child whose start we have not been told of yet. A child that ended since
// exits were counted may have been in its answer: it is asked again.
func (r *Runtime) end(g *generation, c *conn, exits int) {
	ctx, cancel := context.WithTimeout(r.ctx, r.patience.ping)
	defer cancel()
	kids, err := c.children(ctx)
	if err == nil && len(kids) == 0 {
		r.log.Info("old zygote has no workers left, ending it", "generation", g.n)
		_ = c.stopZygote(ctx)
		return // still held: it is on its way out
	}
	r.mu.Lock()
	g.holds--
	again := g.exits != exits
	r.mu.Unlock()
	if again {
		r.notify()
	}
}

func sortedDesc[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.SortedFunc(maps.Keys(m), func(a, b K) int { return cmp.Compare(b, a) })
}
