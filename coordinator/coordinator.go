// Package coordinator places models on the nodes of a fleet. It keeps nothing of its
// own: records are in etcd, what nodes have comes by gossip, who owns a slot is the
// agent's word. So any number of coordinators run side by side; each of them places,
// and the elected one also sweeps.
//
// # Reading order
//
//	internal/placer   one placement: choose, write, claim, conclude
//	internal/store    the records, in etcd
//	internal/sweep    what nobody works on any more
//	world.go          the three above, wired to etcd, the view and the agents
//	http*.go          the API of package coordinator/api over them
//
// # While etcd is away
//
// Running models are not touched. Capacity and nodes are answered from the view, each
// node with its age. Placing is refused within 2 s, code unavailable. Placements are
// listed from memory, with the header Warmd-Age-Seconds that says how old that is.
package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	agentapi "warmd/agent/api"
	"warmd/agent/api/access"
	"warmd/coordinator/internal/placer"
	"warmd/coordinator/internal/store"
	"warmd/coordinator/internal/sweep"
	"warmd/placement"
)

// View is the fleet as this coordinator sees it: a gossip member, or one node without
// a network. Changed is read by the coordinator alone.
type View interface {
	Fleet() placement.Fleet
	Apply(placement.Capacity)
	MarkUnreachable(node string)
	Changed() <-chan struct{}
}

// Options is what code gives a coordinator.
type Options struct {
	// Etcd is used instead of Config.Endpoints; the caller closes it after Run.
	Etcd *store.Client
	// View is required.
	View View
	// AgentClient makes the client of a node's agent; nil dials addr, with TLS if there
	// are certificates.
	AgentClient func(node, addr string) (*agentapi.Client, error)
	// Listeners are used instead of Config.Listen; Run closes them.
	Listeners []net.Listener
	Logger    *slog.Logger
	// Level is the logger's, if a reload may change it.
	Level      *slog.LevelVar
	Registerer prometheus.Registerer
	// Version is told to people.
	Version string
	// Ready is called once: it serves.
	Ready func()
}

// Coordinator is one coordinator. Make it with [New], give it life with
// [Coordinator.Run].
type Coordinator struct {
	cfg      Config // as it was started with
	opt      Options
	instance string
	log      *slog.Logger

	world    *world
	placer   *placer.Placer
	sweeper  *sweep.Sweeper
	election *sweep.Election
	events   *ring
	metrics  *metrics
	guard    *access.Guard
	certs    *access.Certificates // nil: no TLS
	handler  http.Handler
	ownEtcd  bool
	// etcdCerts are ours to etcd; nil: no TLS
	etcdCerts *access.Certificates
	pulse     map[string]chan chan struct{} // by loop: see Alive

	reloading sync.Mutex
	now       Config // as it was read last, under reloading
}

// New checks the configuration and wires the parts; it starts nothing and does not
// wait for etcd.
func New(cfg Config, opt Options) (*Coordinator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure coordinator: %w", err)
	}
	if opt.View == nil {
		return nil, errors.New("configure coordinator: no view of the fleet")
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.Registerer == nil {
		opt.Registerer = prometheus.NewRegistry()
	}
	if opt.Version == "" {
		opt.Version = version()
	}
	c := &Coordinator{cfg: cfg, now: cfg, opt: opt, log: opt.Logger, instance: cfg.Name + "." + nonce(), events: newRing(cfg.Name), pulse: newPulse()}
	if !cfg.TLS.Empty() {
		var err error
		if c.certs, err = access.Load(cfg.TLS, c.log); err != nil {
			return nil, fmt.Errorf("configure coordinator: read certificates: %w", err)
		}
	}
	cl := opt.Etcd
	if cl == nil {
		if len(cfg.Endpoints) == 0 {
			return nil, fmt.Errorf("configure coordinator: %w", &placement.FieldError{Field: "etcd_endpoints", Problem: "is empty: give etcd's addresses, e.g. http://127.0.0.1:2379"})
		}
		var err error
		dial := store.DialConfig{Endpoints: cfg.Endpoints, Username: cfg.Username, Password: cfg.Password}
		if files := cfg.EtcdTLS(); !files.Empty() {
			if c.etcdCerts, err = access.Load(files, c.log); err != nil {
				return nil, fmt.Errorf("configure coordinator: read certificates for etcd: %w", err)
			}
			dial.TLS = c.etcdCerts.Now
		}
		if cl, err = store.Dial(dial); err != nil {
			return nil, fmt.Errorf("configure coordinator: %w", err)
		}
		c.ownEtcd = true
	}
	c.election = &sweep.Election{Client: cl, Prefix: cfg.Prefix, Name: cfg.Name, Instance: c.instance, TTL: cfg.LeaseSeconds, Log: c.log}
	return c, c.wire(store.NewEtcd(cl, cfg.Prefix), c.election.Living)
}

// wire joins the parts over a record store.
func (c *Coordinator) wire(records recordStore, living func(context.Context) (map[string]bool, error)) error {
	dial := c.opt.AgentClient
	if dial == nil {
		dial = c.dialAgent
	}
	c.world = newWorld(records, c.opt.View, dial, living)
	var err error
	if c.metrics, err = newMetrics(c.opt.Registerer, c); err != nil {
		return fmt.Errorf("configure coordinator: %w", err)
	}
	c.placer = placer.New(placer.Config{
		Instance: c.instance, MaxQueue: c.cfg.MaxQueue, Log: c.log, Emit: c.events.add,
		Observe: c.metrics.phase, Done: c.metrics.done,
	}, c.world)
	c.world.resume = c.placer.Resume
	c.sweeper = sweep.New(sweep.Config{
		Instance: c.instance, NodeGone: c.cfg.nodeGone(), Retention: c.cfg.retention(), Log: c.log, Emit: c.events.add,
	}, c.world)
	c.guard = access.NewGuard(access.Coordinator, c.cfg.Access, c.log)
	c.handler = c.routes()
	return nil
}

// Run serves until ctx ends. Placements under way are let go of, not undone: their
// records say how far they are, and whoever comes next goes on.
func (c *Coordinator) Run(ctx context.Context) error {
	lns, err := agentapi.Listen(c.opt.Listeners, c.cfg.Socket, c.cfg.Listen, c.cfg.TLS)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.world.Mirror.Run(ctx, c.world.recordStore) })
	g.Go(func() error { return c.placer.Run(ctx) })
	g.Go(func() error { return c.watchView(ctx) })
	g.Go(func() error { return c.watchNodes(ctx) })
	g.Go(func() error { return c.watchEtcd(ctx) })
	g.Go(func() error { return c.finishOwn(ctx) })
	if c.election != nil {
		g.Go(func() error { return c.election.Run(ctx, c.lead) })
		g.Go(func() error { return c.election.Watch(ctx, c.sweeper.CoordinatorGone) })
	}
	if len(lns) > 0 {
		srv := agentapi.NewServer(c.handler, c.log)
		c.guard.Protect(srv)
		if c.certs != nil {
			srv.TLSConfig = c.certs.Server()
		}
		g.Go(func() error { return agentapi.Serve(ctx, srv, stopTime, lns...) })
	}
	c.log.Info("coordinator runs", "name", c.cfg.Name, "instance", c.instance)
	if c.opt.Ready != nil {
		c.opt.Ready()
	}
	err = g.Wait()
	c.world.close()
	if c.ownEtcd {
		_ = c.election.Client.Close() // last: the parts above say goodbye to etcd
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// stopTime bounds the end of requests under way; their contexts are over by then.
const stopTime = 5 * time.Second

// lead sweeps while this coordinator is elected.
func (c *Coordinator) lead(ctx context.Context, f store.Fence) {
	c.metrics.leads(true)
	defer c.metrics.leads(false)
	c.events.add(placement.Event{Kind: "leader.elected", Message: "coordinator " + c.cfg.Name + " sweeps"})
	c.sweeper.Lead(ctx, f)
}

// lookEvery is how often the view is looked at without being told to: a node that one
// call did not reach is believed again after a while, and nothing announces that.
const lookEvery = 5 * time.Second

// watchView passes the view's changes on to those who wait for them.
func (c *Coordinator) watchView(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case answer := <-c.pulse["view"]:
			close(answer)
			continue
		case <-c.opt.View.Changed():
		case <-tick.C:
		}
		c.placer.Wake()
	}
}

// pingEvery is how often etcd is asked whether it is well.
const pingEvery = 2 * time.Second

// watchEtcd keeps this coordinator's opinion of etcd fresh, so that /v1/status and the
// age of remembered records cost nothing to say.
func (c *Coordinator) watchEtcd(ctx context.Context) error {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		c.world.health.note(c.world.Ping(ctx), ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ownEvery is how often records of ours are looked for that nobody works on: their
// placement was cut off, or a request id found a record whose run had ended.
const ownEvery = 3 * time.Second

func (c *Coordinator) finishOwn(ctx context.Context) error {
	tick := time.NewTicker(ownEvery)
	defer tick.Stop()
	last := map[string]int64{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case answer := <-c.pulse["records"]:
			close(answer)
			continue
		case <-tick.C:
		}
		seen := map[string]int64{}
		for _, r := range c.world.All() {
			if r.Owner != c.instance || r.State != placement.Assigned {
				continue
			}
			seen[r.ID] = r.Revision
			if last[r.ID] == r.Revision { // it was so a while ago: not just a slow watch
				c.placer.Resume(r)
			}
		}
		last = seen
	}
}

func nonce() string {
	b := make([]byte, 5)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}
