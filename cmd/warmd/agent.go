package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"warmd/agent"
	"warmd/agent/gossip"
	"warmd/placement"
)

// agentCommand is `warmd agent`. Flags win over the file, the file over defaults.
func agentCommand() *cli.Command {
	return &cli.Command{
		Name: "agent", Usage: "run the agent of this host", HideHelpCommand: true,
		Description: "warmd agent --config /etc/warmd/agent.toml\n" +
			"warmd agent --name gpu1 --listen 10.0.0.1:7710 --gossip 10.0.0.1:7946 --join 10.0.0.2\n\n" +
			"Ending the agent ends no engine: the next agent finds them. --end-engines is for hosts without systemd.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "`FILE` (TOML) of the agent's configuration"},
			&cli.BoolFlag{Name: "check-config", Usage: "say whether the configuration is valid, and exit"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the node in the fleet; default: the host's name"},
			&cli.StringFlag{Name: "data", Usage: "`DIR` for what must survive a reboot"},
			&cli.StringFlag{Name: "run", Usage: "`DIR` for sockets"},
			&cli.StringFlag{Name: "log-dir", Usage: "`DIR` for the engines' logs"},
			&cli.StringFlag{Name: "runtimes", Usage: "`DIR` where runtimes are installed"},
			&cli.StringSliceFlag{Name: "models", Usage: "`DIR` that models may be in; may be repeated"},
			&cli.StringFlag{Name: "socket", Usage: "`PATH` of the agent's Unix socket"},
			&cli.StringSliceFlag{Name: "listen", Usage: "`HOST:PORT` for the fleet; may be repeated"},
			&cli.StringFlag{Name: "endpoint-host", Usage: "`ADDRESS` that placements are served on"},
			&cli.StringFlag{Name: "device", Usage: "`auto|cpu|cuda`"},
			&cli.IntFlag{Name: "slots", Usage: "`N` placements at once on cpu-0"},
			&cli.BoolFlag{Name: "end-engines", Usage: "end every engine when this agent ends"},
			logFlag(),
		}, gossipFlags()...),
		Action: runAgent,
	}
}

func runAgent(c *cli.Context) error {
	if err := noWords(c); err != nil {
		return err
	}
	cfg := agent.DefaultConfig()
	if path := c.String("config"); path != "" {
		var err error
		if cfg, err = agent.LoadConfig(path); err != nil {
			return cli.Exit(err.Error(), 2)
		}
	}
	if err := agentFlags(c, &cfg); err != nil {
		return err
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	if c.Bool("check-config") {
		fmt.Fprintln(c.App.Writer, "the configuration is valid")
		return nil
	}
	log, err := newLogger(c)
	if err != nil {
		return err
	}
	opt := agent.Options{Logger: log, Ready: func() { log.Info("ready", "socket", cfg.Socket) }}
	member, err := newMember(c, cfg.Node, false, log)
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
	return runAll(c.Context, append(runs, runner{"agent", a.Run}))
}

// agentFlags lays the flags over the configuration.
func agentFlags(c *cli.Context, cfg *agent.Config) error {
	for _, f := range []struct {
		flag string
		to   *string
	}{
		{"name", &cfg.Node}, {"data", &cfg.DataDir}, {"run", &cfg.RunDir}, {"log-dir", &cfg.LogDir}, {"runtimes", &cfg.RuntimesDir},
		{"socket", &cfg.Socket}, {"endpoint-host", &cfg.EndpointHost}, {"device", &cfg.Device},
	} {
		if c.IsSet(f.flag) {
			*f.to = c.String(f.flag)
		}
	}
	if c.IsSet("data") && !c.IsSet("log-dir") {
		cfg.LogDir = filepath.Join(cfg.DataDir, "log")
	}
	if c.IsSet("models") {
		cfg.ModelRoots = c.StringSlice("models")
	}
	if c.IsSet("listen") {
		cfg.Listen = c.StringSlice("listen")
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
	return absolute(&cfg.DataDir, &cfg.RunDir, &cfg.LogDir, &cfg.RuntimesDir, &cfg.Socket)
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

func gossipFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "gossip", Usage: "`ADDRESS:PORT` to gossip on (UDP and TCP); without it there is no fleet"},
		&cli.StringFlag{Name: "advertise-gossip", Usage: "`ADDRESS[:PORT]` that others use; default: the bound one"},
		&cli.StringSliceFlag{Name: "join", Usage: "`HOST:PORT` of a member to look for; may be repeated"},
		&cli.StringFlag{Name: "fleet", Value: "warmd", Usage: "`LABEL` that keeps fleets apart that share a network"},
		&cli.StringFlag{Name: "gossip-keys", Usage: "`FILE` with base64 keys, one a line: the first encrypts, all decrypt"},
	}
}

// newMember makes the gossip member of the flags; nil without --gossip.
func newMember(c *cli.Context, name string, coordinator bool, log *slog.Logger) (*gossip.Member, error) {
	at := c.String("gossip")
	if at == "" {
		return nil, nil
	}
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return nil, &placement.FieldError{Field: "--gossip", Problem: fmt.Sprintf("%q must be ADDRESS:PORT", at)}
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, &placement.FieldError{Field: "--gossip", Problem: fmt.Sprintf("port %q must be a number", port)}
	}
	keys, err := readKeys(c.String("gossip-keys"))
	if err != nil {
		return nil, err
	}
	return gossip.New(gossip.Config{
		Name: name, BindAddr: host, BindPort: n, Advertise: c.String("advertise-gossip"), Join: c.StringSlice("join"),
		Label: c.String("fleet"), Keys: keys, Coordinator: coordinator, Log: log,
	})
}

// readKeys reads a keyring file; everybody who may read it may join the fleet.
func readKeys(path string) ([][]byte, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read gossip keys: %w", err)
	}
	var keys [][]byte
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		k, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return nil, fmt.Errorf("read gossip keys: %s: line %d is not base64", path, len(keys)+1)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("read gossip keys: " + path + " holds none: head -c 32 /dev/urandom | base64 makes one")
	}
	return keys, nil
}
