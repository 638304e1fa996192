package coordinator

import (
	"crypto/tls"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"warmd/placement"
)

// Config is what an operator sets. Start from [DefaultConfig].
type Config struct {
	// Name is what people and other coordinators call this one. Default: the host name.
	Name string `toml:"name"`
	// Listen are the addresses of the API: host:port, or an absolute path of a Unix
	// socket. Not used when Options.Listeners is set.
	Listen []string `toml:"listen"`
	// Endpoints are etcd's. Not used when Options.Etcd is set.
	Endpoints []string `toml:"etcd_endpoints"`
	// Username and Password are for etcd's own access control.
	Username string `toml:"etcd_username"`
	Password string `toml:"etcd_password"`
	// Prefix keeps fleets apart that share an etcd. It begins and ends with "/".
	Prefix string `toml:"etcd_prefix"`
	// LeaseSeconds is how long a dead coordinator counts as alive (10). Below 5 a slow
	// disk under etcd ends leases of healthy coordinators.
	LeaseSeconds int `toml:"lease_seconds"`
	// MaxQueue bounds requests that wait for capacity.
	MaxQueue int `toml:"max_queue"`
	// NodeGoneSeconds is how long a node is silent before its ready placements are
	// called failed.
	NodeGoneSeconds float64 `toml:"node_gone_seconds"`
	// RetentionHours keeps ended placements, and their request ids, for this long; at
	// least 24.
	RetentionHours float64 `toml:"retention_hours"`
	// TLS is for etcd; set by code, not by the file.
	TLS *tls.Config `toml:"-"`
}

// DefaultConfig is a coordinator beside an etcd on the same host.
func DefaultConfig() Config {
	name, err := os.Hostname()
	if err != nil {
		name = "coordinator"
	}
	return Config{
		Name: name, Listen: []string{"127.0.0.1:7071"}, Endpoints: []string{"http://127.0.0.1:2379"}, Prefix: "/warmd/",
		LeaseSeconds: 10, MaxQueue: 1024, NodeGoneSeconds: 600, RetentionHours: 24,
	}
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Validate says which field is wrong, and how. The error is a *placement.FieldError.
func (c Config) Validate() error {
	bad := func(field, format string, args ...any) error {
		return &placement.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)}
	}
	switch {
	case !nameRE.MatchString(c.Name):
		return bad("name", "%q must match %s", c.Name, nameRE)
	case !strings.HasPrefix(c.Prefix, "/") || !strings.HasSuffix(c.Prefix, "/") || len(c.Prefix) < 2:
		return bad("etcd_prefix", "%q must begin and end with /", c.Prefix)
	case c.LeaseSeconds < 2 || c.LeaseSeconds > 300:
		return bad("lease_seconds", "%d must be between 2 and 300", c.LeaseSeconds)
	case c.MaxQueue < 1 || c.MaxQueue > 1<<20:
		return bad("max_queue", "%d must be between 1 and %d", c.MaxQueue, 1<<20)
	case c.NodeGoneSeconds < 10:
		return bad("node_gone_seconds", "%g must be at least 10: gossip takes that long to be sure", c.NodeGoneSeconds)
	case c.RetentionHours < 24:
		return bad("retention_hours", "%g must be at least 24: a request id names its placement for that long", c.RetentionHours)
	}
	return nil
}

func (c Config) nodeGone() time.Duration {
	return time.Duration(c.NodeGoneSeconds * float64(time.Second))
}

func (c Config) retention() time.Duration {
	return time.Duration(c.RetentionHours * float64(time.Hour))
}
