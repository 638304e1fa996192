package main

import (
	"errors"
	"log/slog"
	"os"

	"github.com/urfave/cli/v2"

	"warmd/agent/api/access"
	"warmd/agent/conf"
	"warmd/agent/gossip"
	"warmd/systemd"
)

// layers lays the flags of a command line over a configuration, and notes which keys
// they set: an error about such a value names the flag, not a line of the file.
type layers struct {
	c    *cli.Context
	file *conf.File
}

func (l layers) text(flag, key string, to *string) {
	if l.c.IsSet(flag) {
		*to = l.c.String(flag)
		l.file.SetByFlag(key, "--"+flag)
	}
}

func (l layers) path(flag, key string, to *string) error {
	l.text(flag, key, to)
	if !l.c.IsSet(flag) {
		return nil
	}
	return absolute(to)
}

func (l layers) list(flag, key string, to *[]string) {
	if l.c.IsSet(flag) {
		*to = l.c.StringSlice(flag)
		l.file.SetByFlag(key, "--"+flag)
	}
}

func (l layers) gossip(to *gossip.Settings) error {
	l.text("gossip", "gossip.listen", &to.Listen)
	l.text("advertise-gossip", "gossip.advertise", &to.Advertise)
	l.list("join", "gossip.join", &to.Join)
	l.text("fleet", "gossip.label", &to.Label)
	return l.path("gossip-keys", "gossip.keys_file", &to.KeysFile)
}

func (l layers) tls(to *access.Files) error {
	return errors.Join(l.path("tls-ca", "tls.ca", &to.CA), l.path("tls-cert", "tls.cert", &to.Cert), l.path("tls-key", "tls.key", &to.Key))
}

func tlsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "tls-ca", Usage: "`FILE` with the CAs of the fleet; needed to listen where other hosts can call"},
		&cli.StringFlag{Name: "tls-cert", Usage: "`FILE` with the certificate of this process"},
		&cli.StringFlag{Name: "tls-key", Usage: "`FILE` with its private key"},
	}
}

func configFlags(example string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "`FILE` (TOML), e.g. " + example + "; flags win over it"},
		&cli.BoolFlag{Name: "check-config", Usage: "say what is wrong with the configuration, or what it amounts to on this host, and exit"},
	}
}

func gossipFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "gossip", Usage: "`ADDRESS:PORT` to gossip on (UDP and TCP); without it there is no fleet"},
		&cli.StringFlag{Name: "advertise-gossip", Usage: "`ADDRESS[:PORT]` that others use; default: the bound one"},
		&cli.StringSliceFlag{Name: "join", Usage: "`HOST:PORT` of a member to look for; may be repeated"},
		&cli.StringFlag{Name: "fleet", DefaultText: gossip.DefaultLabel, Usage: "`LABEL` that keeps fleets apart that share a network"},
		&cli.StringFlag{Name: "gossip-keys", Usage: "`FILE` with base64 keys, one a line: the first encrypts, all decrypt"},
	}
}

// newMember makes the gossip member that the settings ask for; nil when they ask for
// none.
func newMember(s gossip.Settings, name string, coordinator bool, log *slog.Logger) (*gossip.Member, error) {
	if s.Listen == "" {
		return nil, nil
	}
	c, err := s.Config()
	if err != nil {
		return nil, err
	}
	c.Name, c.Coordinator, c.Log = name, coordinator, log
	return gossip.New(c)
}

// leveled makes a daemon's logger; the level can be changed while it runs. The text
// has been validated.
func leveled(text string) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	_ = level.UnmarshalText([]byte(text))
	return slog.New(systemd.NewLogHandler(os.Stderr, level)), level
}
