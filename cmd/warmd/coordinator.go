package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"warmd/agent/api/access"
	"warmd/agent/conf"
	"warmd/coordinator"
	"warmd/placement"
)

// coordinatorCommand is `warmd coordinator`: one to three per fleet, over one etcd.
func coordinatorCommand() *cli.Command {
	return &cli.Command{
		Name: "coordinator", Usage: "run a coordinator of the fleet", HideHelpCommand: true,
		Description: "warmd coordinator --config /etc/warmd/coordinator.toml\n" +
			"warmd coordinator --etcd http://127.0.0.1:2379 --gossip 127.0.0.1:7947 --join 127.0.0.1:7946\n\n" +
			"Coordinators keep nothing: any number of them, over the same etcd, may be started and ended at any time.",
		Flags: slices.Concat(configFlags("/etc/warmd/coordinator.toml"), []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` of this coordinator, unlike any node's; default: the host's name and -coordinator"},
			&cli.StringSliceFlag{Name: "etcd", Usage: "`URL` of an etcd member; may be repeated"},
			&cli.StringFlag{Name: "etcd-prefix", Usage: "`/PREFIX/` of the records in etcd"},
			&cli.StringFlag{Name: "socket", DefaultText: coordinator.DefaultConfig().Socket, Usage: "`PATH` of the Unix socket"},
			&cli.StringSliceFlag{Name: "listen", Usage: "`HOST:PORT` for clients; may be repeated"},
			logFlag(),
		}, tlsFlags(), gossipFlags()),
		Action: runCoordinator,
	}
}

func runCoordinator(c *cli.Context) error {
	if err := noWords(c); err != nil {
		return err
	}
	cfg, file, err := coordinatorLayers(c)
	if c.Bool("check-config") {
		r := newReport("warmd-coordinator")
		checkCoordinator(r, cfg)
		return r.end(c.App.Writer, file, c.String("config"), err)
	}
	if err != nil {
		return err
	}
	log, level := leveled(cfg.LogLevel)
	sd, err := newService("coordinator", log)
	if err != nil {
		return err
	}
	member, err := newMember(cfg.Gossip, cfg.Name, true, log)
	if err != nil {
		return err
	}
	ready := make(chan struct{})
	co, err := coordinator.New(cfg, coordinator.Options{
		View: member, Logger: log, Level: level, Version: version, Listeners: sd.listeners,
		Ready: func() { close(ready) },
	})
	if err != nil {
		return err
	}
	reload := func() error {
		cfg, err := coordinatorConfig(c)
		if err != nil {
			return err
		}
		return co.Reload(cfg)
	}
	return runAll(c.Context, []runner{
		{"gossip", member.Run}, {"coordinator", co.Run}, sd.supervised(ready, co.Status, co.Alive), sd.reloads(reload, co.Status),
	})
}

// coordinatorConfig is what a command line asks for: flags over the file, the file
// over the defaults. The error says everything that is wrong, and where.
func coordinatorConfig(c *cli.Context) (coordinator.Config, error) {
	cfg, _, err := coordinatorLayers(c)
	return cfg, err
}

func coordinatorLayers(c *cli.Context) (coordinator.Config, *conf.File, error) {
	cfg, file := coordinator.DefaultConfig(), new(conf.File)
	var read error
	if path := c.String("config"); path != "" {
		cfg, file, read = coordinator.ReadConfig(path)
	}
	l := layers{c, file}
	l.text("name", "name", &cfg.Name)
	l.list("etcd", "etcd_endpoints", &cfg.Endpoints)
	l.text("etcd-prefix", "etcd_prefix", &cfg.Prefix)
	l.list("listen", "listen", &cfg.Listen)
	l.text("log-level", "log_level", &cfg.LogLevel)
	if err := errors.Join(l.path("socket", "socket", &cfg.Socket), l.tls(&cfg.TLS), l.gossip(&cfg.Gossip)); err != nil {
		return cfg, file, err
	}
	valid := cfg.Validate()
	if cfg.Gossip.Listen == "" {
		valid = errors.Join(valid, &placement.FieldError{Field: "gossip.listen", Problem: "is missing: a coordinator without a fleet places nothing. " +
			"Set it and gossip.join, or --gossip and --join (on one host, `warmd dev` needs neither)"})
	}
	return cfg, file, errors.Join(read, file.Locate(valid))
}

// checkCoordinator looks at everything that a coordinator's configuration names on this
// host. Whether etcd answers is not among it: that is a question of the moment.
func checkCoordinator(r *report, cfg coordinator.Config) {
	r.fact("name", "%s", cfg.Name)
	r.tls("tls.", cfg.TLS, cfg.Name, access.UnitCoordinator)
	for i, a := range cfg.Listen {
		r.local(fmt.Sprintf("listen[%d]", i), a)
	}
	r.gossip(cfg.Gossip)
	r.groups(cfg.Access)
	r.socket(cfg.Socket)
	r.tls("etcd_", cfg.EtcdTLS(), cfg.Name, "")
	r.fact("etcd", "%s below %s", strings.Join(cfg.Endpoints, ", "), cfg.Prefix)
}
