package coordinator

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"warmd/agent/api/access"
	"warmd/agent/conf"
	"warmd/agent/gossip"
	"warmd/placement"
)

// Config is what an operator sets. Start from [DefaultConfig].
type Config struct {
	// Name is what people and other coordinators call this one. Default: the host name.
	Name string `toml:"name"`
	// Socket is the Unix socket of the API, Listen are its TCP addresses, host:port.
	// Neither is used when Options.Listeners is set.
	Socket string   `toml:"socket"`
	Listen []string `toml:"listen"`
	// Endpoints are etcd's. Not used when Options.Etcd is set.
	Endpoints []string `toml:"etcd_endpoints"`
	// Username and Password are for etcd's own access control.
	Username string `toml:"etcd_username"`
	Password string `toml:"etcd_password"`
	// EtcdCA, EtcdCert and EtcdKey are the files of TLS with etcd, which has a CA of its
	// own: it knows no roles.
	EtcdCA   string `toml:"etcd_ca"`
	EtcdCert string `toml:"etcd_cert"`
	EtcdKey  string `toml:"etcd_key"`
	// Prefix keeps fleets apart that share an etcd. It begins and ends with "/".
	Prefix string `toml:"etcd_prefix"`
	// LeaseSeconds is how long a dead coordinator counts as alive (4): what it had not
	// finished is taken over at most a second later. Below 4 a slow disk under etcd ends
	// leases of healthy coordinators.
	LeaseSeconds int `toml:"lease_seconds"`
	// MaxQueue bounds requests that wait for capacity.
	MaxQueue int `toml:"max_queue"`
	// NodeGoneSeconds is how long a node is silent before its ready placements are
	// called failed.
	NodeGoneSeconds float64 `toml:"node_gone_seconds"`
	// RetentionHours keeps ended placements, and their request ids, for this long; at
	// least 24.
	RetentionHours float64 `toml:"retention_hours"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `toml:"log_level"`
	// Gossip is how this coordinator finds the fleet.
	Gossip gossip.Settings `toml:"gossip"`
	// TLS is who this coordinator is, to clients and to agents; with it every TCP address
	// of Listen speaks TLS, and so must every agent.
	TLS access.Files `toml:"tls"`
	// Access gives roles to groups of this host; certificates carry theirs.
	Access access.Groups `toml:"access"`
}

// EtcdTLS are the files of TLS with etcd.
func (c Config) EtcdTLS() access.Files {
	return access.Files{CA: c.EtcdCA, Cert: c.EtcdCert, Key: c.EtcdKey, Under: "etcd_"}
}

// DefaultConfig is a coordinator beside an etcd on the same host. Its name is not that
// of the host, which is the agent's.
func DefaultConfig() Config {
	name, err := os.Hostname()
	if err != nil {
		name = "localhost"
	}
	return Config{
		Name: name + "-coordinator", Socket: "/run/warmd/coordinator.sock", Endpoints: []string{"http://127.0.0.1:2379"}, Prefix: "/warmd/",
		LeaseSeconds: 4, MaxQueue: 1024, NodeGoneSeconds: 600, RetentionHours: 24, LogLevel: "info", Access: access.DefaultGroups(),
	}
}

// ReadConfig reads a TOML file over the defaults. An error says file, line and key.
// Validate it when flags have been laid over it, and let the file locate the error.
func ReadConfig(path string) (Config, *conf.File, error) {
	c := DefaultConfig()
	f, err := conf.Read(path, &c)
	return c, f, err
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Validate checks the form of every value; an error is a *placement.FieldError that
// names the key, or several, joined.
func (c Config) Validate() error {
	var errs []error
	bad := func(wrong bool, field, format string, args ...any) {
		if wrong {
			errs = append(errs, &placement.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
		}
	}
	bad(!nameRE.MatchString(c.Name), "name", "%q must match %s", c.Name, nameRE)
	bad(c.Socket != "" && (!filepath.IsAbs(c.Socket) || len(c.Socket) > 107), "socket", "%q must be an absolute path of at most 107 bytes", c.Socket)
	for i, a := range c.Listen {
		_, _, err := net.SplitHostPort(a)
		bad(err != nil, fmt.Sprintf("listen[%d]", i), "%q must be host:port", a)
	}
	errs = append(errs, c.TLS.CheckListen(c.Listen)...)
	for i, e := range c.Endpoints {
		u, err := url.Parse(e)
		bad(err != nil || u.Host == "" && u.Path == "" && u.Opaque == "", fmt.Sprintf("etcd_endpoints[%d]", i), "%q must be https://host:2379", e)
		bad(err == nil && u.Scheme == "http" && !c.EtcdTLS().Empty(), fmt.Sprintf("etcd_endpoints[%d]", i), "%q must begin with https: etcd_ca is set", e)
	}
	bad(!strings.HasPrefix(c.Prefix, "/") || !strings.HasSuffix(c.Prefix, "/") || len(c.Prefix) < 2, "etcd_prefix", "%q must begin and end with /", c.Prefix)
	bad(c.LeaseSeconds < 2 || c.LeaseSeconds > 300, "lease_seconds", "%d must be between 2 and 300", c.LeaseSeconds)
	bad(c.MaxQueue < 1 || c.MaxQueue > 1<<20, "max_queue", "%d must be between 1 and %d", c.MaxQueue, 1<<20)
	bad(c.NodeGoneSeconds < 10, "node_gone_seconds", "%g must be at least 10: gossip takes that long to be sure", c.NodeGoneSeconds)
	bad(c.RetentionHours < 24, "retention_hours", "%g must be at least 24: a request id names its placement for that long", c.RetentionHours)
	bad(new(slog.Level).UnmarshalText([]byte(c.LogLevel)) != nil, "log_level", "%q must be debug, info, warn or error", c.LogLevel)
	return errors.Join(append(errs, c.Gossip.Validate(), c.TLS.Validate(), c.EtcdTLS().Validate(), c.Access.Validate())...)
}

func (c Config) nodeGone() time.Duration {
	return time.Duration(c.NodeGoneSeconds * float64(time.Second))
}

func (c Config) retention() time.Duration {
	return time.Duration(c.RetentionHours * float64(time.Hour))
}
