package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"warmd/coordinator"
)

// coordinatorCommand is `warmd coordinator`: one to three per fleet, over one etcd.
func coordinatorCommand() *cli.Command {
	return &cli.Command{
		Name: "coordinator", Usage: "run a coordinator of the fleet", HideHelpCommand: true,
		Description: "warmd coordinator --etcd http://10.0.0.1:2379 --gossip 10.0.0.1:7947 --join 10.0.0.1:7946 --listen 10.0.0.1:7711\n\n" +
			"Coordinators keep nothing: any number of them, over the same etcd, may be started and ended at any time.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` of this coordinator, unlike any node's; default: the host's name and -coordinator"},
			&cli.StringSliceFlag{Name: "etcd", Usage: "`URL` of an etcd member; may be repeated"},
			&cli.StringFlag{Name: "etcd-prefix", Usage: "`/PREFIX/` of the records in etcd"},
			&cli.StringFlag{Name: "socket", Value: "/run/warmd/coordinator.sock", Usage: "`PATH` of the Unix socket"},
			&cli.StringSliceFlag{Name: "listen", Usage: "`HOST:PORT` for clients; may be repeated"},
			logFlag(),
		}, gossipFlags()...),
		Action: runCoordinator,
	}
}

func runCoordinator(c *cli.Context) error {
	if err := noWords(c); err != nil {
		return err
	}
	cfg := coordinator.DefaultConfig()
	cfg.Name += "-coordinator"
	if c.IsSet("name") {
		cfg.Name = c.String("name")
	}
	if c.IsSet("etcd") {
		cfg.Endpoints = c.StringSlice("etcd")
	}
	if c.IsSet("etcd-prefix") {
		cfg.Prefix = c.String("etcd-prefix")
	}
	socket := c.String("socket")
	if err := absolute(&socket); err != nil {
		return err
	}
	cfg.Listen = append([]string{socket}, c.StringSlice("listen")...)
	log, err := newLogger(c)
	if err != nil {
		return err
	}
	member, err := newMember(c, cfg.Name, true, log)
	if err != nil {
		return err
	}
	if member == nil {
		return cli.Exit(fmt.Sprintf("coordinator %s has no fleet: give --gossip ADDRESS:PORT and --join an agent's (on one host, `warmd dev` needs neither)", cfg.Name), 2)
	}
	co, err := coordinator.New(cfg, coordinator.Options{View: member, Logger: log, Version: version})
	if err != nil {
		return err
	}
	return runAll(c.Context, []runner{{"gossip", member.Run}, {"coordinator", co.Run}})
}
