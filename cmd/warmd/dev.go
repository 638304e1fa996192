package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"

	"warmd/agent"
	"warmd/agent/api"
	"warmd/agent/api/access"
	"warmd/agent/gossip"
	"warmd/agent/runtime"
	"warmd/coordinator"
	"warmd/placement"
)

// devConfig is a whole fleet in one process and one folder.
type devConfig struct {
	// Data holds everything; its sockets are coordinator.sock, agent.sock (the first
	// node) and agent-2.sock, agent-3.sock ...
	Data     string
	Runtimes string
	Models   []string
	Nodes    int
	// Slots of each node's cpu-0; 0 takes the default.
	Slots int
	// KeepTraces is as in agent.toml.
	KeepTraces int
	// Device is auto, cpu or cuda. Several nodes share one host's GPUs only on cpu.
	Device string
	Listen []string // the coordinator's TCP addresses
	Log    *slog.Logger
	Ready  func()
}

// devDir is where warmctl looks for a `warmd dev`.
func devDir() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return "/tmp/warmd-dev"
	}
	return filepath.Join(home, ".local/share/warmd/dev")
}

// devCommand is `warmd dev`.
func devCommand() *cli.Command {
	return &cli.Command{
		Name: "dev", Usage: "run a whole fleet in this process: coordinator, agent and etcd", HideHelpCommand: true,
		Description: "warmd dev --models ~/models\n" +
			"warmd dev --nodes 3\n\n" +
			"warmctl finds it without flags. Ctrl-C ends it, and every engine with it.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "data", Value: devDir(), DefaultText: "~/.local/share/warmd/dev", Usage: "`DIR` for everything"},
			&cli.StringFlag{Name: "runtimes", Value: runtime.DefaultRoot(), DefaultText: "as `warmd runtime ls` shows", Usage: "`DIR` where runtimes are installed"},
			&cli.StringSliceFlag{Name: "models", Usage: "`DIR` that models may be in; may be repeated"},
			&cli.IntFlag{Name: "nodes", Value: 1, Usage: "`N` agents in this process: a small fleet on a laptop"},
			&cli.IntFlag{Name: "slots", Usage: "`N` placements at once on each cpu-0"},
			&cli.IntFlag{Name: "keep-traces", Value: agent.DefaultConfig().KeepTraces, Usage: "`N` traces of starts are kept; 0 records none"},
			&cli.StringFlag{Name: "device", Value: "auto", Usage: "devices to manage: `auto|cpu|cuda`"},
			&cli.StringSliceFlag{Name: "listen", Usage: "`HOST:PORT` for the coordinator besides its Unix socket; may be repeated"},
			logFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := noWords(c); err != nil {
				return err
			}
			log, err := newLogger(c)
			if err != nil {
				return err
			}
			cfg := devConfig{
				Data: c.String("data"), Runtimes: c.String("runtimes"), Models: c.StringSlice("models"), Nodes: c.Int("nodes"),
				Slots: c.Int("slots"), KeepTraces: c.Int("keep-traces"), Device: c.String("device"), Listen: c.StringSlice("listen"), Log: log,
			}
			cfg.Ready = func() {
				fmt.Fprintf(c.App.ErrWriter, "warmd dev is ready: %d node(s), data in %s\n  warmctl nodes\n  warmctl place MODEL\n", cfg.Nodes, cfg.Data)
			}
			return runDev(c.Context, cfg)
		},
	}
}

// runDev runs until ctx ends, then ends everything it started.
func runDev(ctx context.Context, cfg devConfig) (err error) {
	if cfg.Nodes < 1 || cfg.Nodes > 32 {
		return &placement.FieldError{Field: "--nodes", Problem: fmt.Sprintf("%d must be between 1 and 32", cfg.Nodes)}
	}
	if cfg.Slots < 0 || cfg.Slots > 64 {
		return &placement.FieldError{Field: "--slots", Problem: fmt.Sprintf("%d must be between 1 and 64", cfg.Slots)}
	}
	if err := absolute(&cfg.Data, &cfg.Runtimes); err != nil {
		return err
	}
	for i := range cfg.Models {
		if err := absolute(&cfg.Models[i]); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	unlock, err := lockDir(cfg.Data)
	if err != nil {
		return err
	}
	defer unlock()
	etcd, err := startDevEtcd(ctx, cfg.Data)
	if err != nil {
		return err
	}
	defer etcd.Close()

	fleet, err := devFleet(cfg)
	if err != nil {
		return err
	}
	ready := make(chan struct{}, cfg.Nodes)
	var parts []runner
	for i := range cfg.Nodes {
		member := fleet[i]
		parts = append(parts, runner{"gossip of " + nodeName(i), member.Run})
		a, err := agent.New(devAgent(cfg, i), agent.Options{
			Logger: cfg.Log.With("node", nodeName(i)), Gossip: member, Ready: func() { ready <- struct{}{} },
		})
		if err != nil {
			return err
		}
		parts = append(parts, runner{"agent " + nodeName(i), a.Run})
	}
	view := fleet[0]
	if cfg.Nodes > 1 {
		view = fleet[cfg.Nodes]
		parts = append(parts, runner{"gossip of the coordinator", view.Run})
	}
	cc := coordinator.DefaultConfig()
	cc.Name, cc.Endpoints = "dev", []string{etcd.url}
	// The sockets are open before Ready is called: a client's first request waits there.
	listeners, err := api.Listen(nil, filepath.Join(cfg.Data, "coordinator.sock"), cfg.Listen, access.Files{})
	if err != nil {
		return err
	}
	co, err := coordinator.New(cc, coordinator.Options{View: view, Logger: cfg.Log, Version: version, Listeners: listeners})
	if err != nil {
		return err
	}
	parts = append(parts, runner{"coordinator", co.Run}, runner{"ready", func(ctx context.Context) error {
		for range cfg.Nodes {
			select {
			case <-ready:
			case <-ctx.Done():
				return nil
			}
		}
		if cfg.Ready != nil {
			cfg.Ready()
		}
		<-ctx.Done()
		return nil
	}})
	return runAll(ctx, parts)
}

// devMember is a gossip member or a fleet of one.
type devMember interface {
	agent.Gossip
	coordinator.View
	Run(context.Context) error
}

// devFleet makes a member for each node and, when there are several, one for the
// coordinator, on loopback addresses.
func devFleet(cfg devConfig) ([]devMember, error) {
	if cfg.Nodes == 1 {
		return []devMember{gossip.NewSolo(nodeName(0))}, nil
	}
	seed, err := freeAddress()
	if err != nil {
		return nil, err
	}
	var all []devMember
	for i := range cfg.Nodes + 1 {
		c := gossip.Config{Name: nodeName(i), BindAddr: "127.0.0.1", Join: []string{seed.String()}, Label: "warmd-dev", Log: cfg.Log}
		switch i {
		case 0:
			c.BindAddr, c.BindPort = seed.Addr().String(), int(seed.Port())
		case cfg.Nodes:
			c.Name, c.Coordinator = "coordinator", true
		}
		m, err := gossip.New(c)
		if err != nil {
			return nil, fmt.Errorf("make gossip member %s: %w", c.Name, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// freeAddress is for a listener whose address must be known before it listens. The
// kernel picks the port, on an address within 127.0.0.0/8 that is picked here: whoever
// else asks the kernel for a port of 127.0.0.1 before the listener has come, or while it
// restarts, gets one of another address.
func freeAddress() (netip.AddrPort, error) {
	ip := net.IPv4(127, byte(1+rand.IntN(254)), byte(rand.IntN(256)), byte(1+rand.IntN(254)))
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip})
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find a free address: %w", err)
	}
	defer ln.Close()
	return netip.ParseAddrPort(ln.Addr().String())
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i+1) }

// devAgent is the configuration of one node, all of it below the data folder.
func devAgent(cfg devConfig, i int) agent.Config {
	c := agent.DefaultConfig()
	dir := filepath.Join(cfg.Data, nodeName(i))
	c.Node, c.DataDir, c.RunDir, c.LogDir = nodeName(i), dir, filepath.Join(dir, "run"), filepath.Join(dir, "log")
	c.RuntimesDir, c.ModelRoots, c.Listen = cfg.Runtimes, cfg.Models, []string{"127.0.0.1:0"}
	c.Socket = filepath.Join(cfg.Data, "agent.sock")
	if i > 0 {
		c.Socket = filepath.Join(cfg.Data, fmt.Sprintf("agent-%d.sock", i+1))
	}
	c.Device, c.EndEngines, c.Version, c.KeepTraces = cfg.Device, true, version, cfg.KeepTraces
	if cfg.Nodes > 1 && c.Device == "auto" {
		c.Device = "cpu" // several agents must not manage the same GPU
	}
	if cfg.Slots > 0 {
		c.Devices = map[string]agent.DeviceConfig{"cpu-0": {Slots: cfg.Slots}}
	}
	return c
}

// lockDir keeps a second `warmd dev` away from a data folder in use.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: another `warmd dev` uses it: give this one another --data", dir), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
