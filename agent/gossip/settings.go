package gossip

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/hashicorp/memberlist"

	"warmd/placement"
)

// Settings are the [gossip] table of agent.toml and coordinator.toml.
type Settings struct {
	// Listen is ADDRESS:PORT for UDP and TCP; empty means that there is no fleet.
	Listen string `toml:"listen"`
	// Advertise is the address that others use; default the bound one.
	Advertise string `toml:"advertise"`
	// Join lists members to look for; two or three are enough.
	Join []string `toml:"join"`
	// Label keeps fleets apart that share a network; all members have the same.
	Label string `toml:"label"`
	// KeysFile holds base64 keys, one a line: the first encrypts, all decrypt. Whoever
	// may read it may join the fleet. Needed where others can reach the address.
	KeysFile string `toml:"keys_file"`
}

// DefaultLabel is the label of a fleet that has not been given one.
const DefaultLabel = "warmd"

// Validate checks the form, all of it; every error is a *placement.FieldError.
func (s Settings) Validate() error {
	if s.Listen == "" {
		if len(s.Join) > 0 {
			return &placement.FieldError{Field: "gossip.listen", Problem: "is missing: gossip.join needs an address of this host too"}
		}
		return nil
	}
	c, err := s.config()
	errs := []error{err}
	c.Name = "any" // its owner checks the name
	for _, e := range c.problems() {
		e.Field = "gossip." + e.Field
		errs = append(errs, e)
	}
	if err == nil && s.KeysFile == "" && !loopback(c.BindAddr) {
		errs = append(errs, &placement.FieldError{Field: "gossip.keys_file",
			Problem: "is missing: whoever reaches " + s.Listen + " could join the fleet; `head -c 32 /dev/urandom | base64` makes a key"})
	}
	return errors.Join(errs...)
}

// Config makes a member's configuration: it reads the keys.
func (s Settings) Config() (Config, error) {
	c, err := s.config()
	if err == nil {
		c.Keys, err = s.ReadKeys()
	}
	return c, err
}

func (s Settings) config() (Config, error) {
	c := Config{Advertise: s.Advertise, Join: s.Join, Label: s.Label}
	host, port, err := net.SplitHostPort(s.Listen)
	if err != nil {
		return c, &placement.FieldError{Field: "gossip.listen", Problem: fmt.Sprintf("%q must be ADDRESS:PORT", s.Listen)}
	}
	if host != "" {
		if _, err := netip.ParseAddr(host); err != nil {
			return c, &placement.FieldError{Field: "gossip.listen", Problem: fmt.Sprintf("%q must begin with an IP address of this host", s.Listen)}
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return c, &placement.FieldError{Field: "gossip.listen", Problem: fmt.Sprintf("port %q must be a number between 0 and 65535", port)}
	}
	c.BindAddr, c.BindPort = host, int(n)
	return c, nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// ReadKeys reads KeysFile; without one there are no keys.
func (s Settings) ReadKeys() ([][]byte, error) {
	if s.KeysFile == "" {
		return nil, nil
	}
	bad := func(format string, args ...any) error {
		return &placement.FieldError{Field: "gossip.keys_file", Problem: fmt.Sprintf(format, args...)}
	}
	b, err := os.ReadFile(s.KeysFile)
	if err != nil {
		return nil, bad("cannot be read: %v", err)
	}
	var keys [][]byte
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		k, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return nil, bad("%s:%d is not base64", s.KeysFile, n)
		}
		if memberlist.ValidateKey(k) != nil {
			return nil, bad("%s:%d has %d bytes, must have 16, 24 or 32", s.KeysFile, n, len(k))
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, bad("%s holds none: `head -c 32 /dev/urandom | base64` makes one", s.KeysFile)
	}
	return keys, nil
}

// Rekey reads the keys again and gives them to a member that runs. One that has no
// network has no keys.
func (s Settings) Rekey(member any) error {
	keys, err := s.ReadKeys()
	if err != nil {
		return err
	}
	if m, ok := member.(interface{ SetKeys([][]byte) error }); ok {
		if err := m.SetKeys(keys); err != nil {
			return fmt.Errorf("gossip.keys_file: %w", err)
		}
	}
	return nil
}
