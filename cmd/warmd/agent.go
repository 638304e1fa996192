package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"warmd/agent"
	"warmd/agent/conf"
	"warmd/placement"
)

// agentCommand is `warmd agent`. Flags win over the file, the file over defaults.
func agentCommand() *cli.Command {
	return &cli.Command{
		Name: "agent", Usage: "run the agent of this host", HideHelpCommand: true,
		Description: "warmd agent --config /etc/warmd/agent.toml\n" +
			"warmd agent --name gpu1 --listen 127.0.0.1:7710 --gossip 127.0.0.1:7946\n\n" +
			"Ending the agent ends no engine: the next agent finds them. --end-engines is for hosts without systemd.",
		Flags: slices.Concat(configFlags("/etc/warmd/agent.toml"), []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the node in the fleet; default: the host's name"},
			&cli.StringFlag{Name: "data", Usage: "`DIR` for what must survive a reboot"},
			&cli.StringFlag{Name: "run", Usage: "`DIR` for sockets"},
			&cli.StringFlag{Name: "log-dir", Usage: "`DIR` for the engines' logs"},
			&cli.StringFlag{Name: "runtimes", Usage: "`DIR` where runtimes are installed"},
			&cli.StringSliceFlag{Name: "models", Usage: "`DIR` that models may be in; may be repeated"},
			&cli.StringFlag{Name: "socket", Usage: "`PATH` of the agent's Unix socket"},
			&cli.StringSliceFlag{Name: "listen", Usage: "`HOST:PORT` for the fleet; may be repeated"},
			&cli.StringFlag{Name: "endpoint-host", Usage: "`ADDRESS` that placements are served on"},
			&cli.StringFlag{Name: "device", Usage: "devices to manage: `auto|cpu|cuda`"},
			&cli.IntFlag{Name: "slots", Usage: "`N` placements at once on cpu-0"},
			&cli.BoolFlag{Name: "end-engines", Usage: "end every engine when this agent ends"},
			logFlag(),
		}, tlsFlags(), gossipFlags()),
		Action: runAgent,
	}
}

func runAgent(c *cli.Context) error {
	if err := noWords(c); err != nil {
		return err
	}
	cfg, file, err := agentLayers(c)
	if c.Bool("check-config") {
		r := newReport("warmd")
		checkAgent(r, cfg)
		return r.end(c.App.Writer, file, c.String("config"), err)
	}
	if err != nil {
		return err
	}
	log, level := leveled(cfg.LogLevel)
	sd, err := newService("agent", log)
	if err != nil {
		return err
	}
	opt := agent.Options{Logger: log, Level: level, Listeners: sd.listeners, Notifier: sd.Notifier, Supervised: sd.started}
	if sd.lines != nil { // a nil *Lines would be some Lines
		opt.EngineLines = sd.lines
	}
	member, err := newMember(cfg.Gossip, cfg.Node, false, log)
	if err != nil {
		return err
	}
	var runs []runner
	if member != nil {
		opt.Gossip = member
		runs = append(runs, runner{"gossip", member.Run})
	}
	a, err := agent.New(cfg, opt)
	if err != nil {
		return err
	}
	reload := func() error {
		cfg, err := agentConfig(c)
		if err != nil {
			return err
		}
		return a.Reload(cfg)
	}
	return runAll(c.Context, append(runs, runner{"agent", a.Run}, sd.reloads(reload, a.Status)))
}

// agentConfig is what a command line asks for: flags over the file, the file over the
// defaults. The error says everything that is wrong, and where.
func agentConfig(c *cli.Context) (agent.Config, error) {
	cfg, _, err := agentLayers(c)
	return cfg, err
}

func agentLayers(c *cli.Context) (agent.Config, *conf.File, error) {
	cfg, file := agent.DefaultConfig(), new(conf.File)
	var read error
	if path := c.String("config"); path != "" {
		cfg, file, read = agent.ReadConfig(path)
	}
	if err := agentFlags(layers{c, file}, &cfg); err != nil {
		return cfg, file, err
	}
	return cfg, file, errors.Join(read, file.Locate(cfg.Validate()))
}

// agentFlags lays the flags over the configuration.
func agentFlags(l layers, cfg *agent.Config) error {
	c := l.c
	for _, f := range []struct {
		flag, key string
		to        *string
	}{
		{"data", "data_dir", &cfg.DataDir}, {"run", "run_dir", &cfg.RunDir}, {"log-dir", "log_dir", &cfg.LogDir},
		{"runtimes", "runtimes_dir", &cfg.RuntimesDir}, {"socket", "socket", &cfg.Socket},
	} {
		if err := l.path(f.flag, f.key, f.to); err != nil {
			return err
		}
	}
	l.text("name", "node", &cfg.Node)
	l.text("endpoint-host", "endpoint_host", &cfg.EndpointHost)
	l.text("device", "device", &cfg.Device)
	l.text("log-level", "log_level", &cfg.LogLevel)
	l.list("models", "model_roots", &cfg.ModelRoots)
	l.list("listen", "listen", &cfg.Listen)
	if c.IsSet("data") && !c.IsSet("log-dir") {
		cfg.LogDir = filepath.Join(cfg.DataDir, "log")
	}
	if c.IsSet("slots") {
		if n := c.Int("slots"); n < 1 || n > 64 {
			return &placement.FieldError{Field: "--slots", Problem: fmt.Sprintf("%d must be between 1 and 64", n)}
		}
		if cfg.Devices == nil {
			cfg.Devices = map[string]agent.DeviceConfig{}
		}
		d := cfg.Devices["cpu-0"]
		d.Slots = c.Int("slots")
		cfg.Devices["cpu-0"] = d
	}
	cfg.EndEngines, cfg.Version = c.Bool("end-engines"), version
	return errors.Join(l.tls(&cfg.TLS), l.gossip(&cfg.Gossip))
}

// absolute makes paths of flags absolute: a daemon has no current folder to speak of.
func absolute(paths ...*string) error {
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("find %s: %w", *p, err)
		}
		*p = abs
	}
	return nil
}
