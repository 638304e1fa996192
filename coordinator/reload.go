package coordinator

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"warmd/agent/conf"
)

// live are the keys that Reload puts into effect.
var live = []string{"log_level", "gossip.keys_file", "access.read", "access.place", "access.admin"}

// isLive reports whether a key can change while the coordinator runs; certificates can
// where there are some.
func (c *Coordinator) isLive(key string, cfg Config) bool {
	switch {
	case strings.HasPrefix(key, "tls."):
		return c.certs.CanTake(cfg.TLS)
	case slices.Contains([]string{"etcd_ca", "etcd_cert", "etcd_key"}, key):
		return c.etcdCerts.CanTake(cfg.EtcdTLS())
	}
	return slices.Contains(live, key)
}

// Reload takes a new configuration into effect, as far as a running coordinator can,
// and logs by key what needs a restart. With an error nothing has changed.
func (c *Coordinator) Reload(cfg Config) error {
	c.reloading.Lock()
	defer c.reloading.Unlock()
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("reload configuration: %w", err)
	}
	if err := errors.Join(c.certs.Check(cfg.TLS), c.etcdCerts.Check(cfg.EtcdTLS())); err != nil {
		return fmt.Errorf("reload configuration: %w", err)
	}
	if err := cfg.Gossip.Rekey(c.opt.View); err != nil { // the last step that can fail
		return fmt.Errorf("reload configuration: %w", err)
	}
	if c.opt.Level != nil {
		_ = c.opt.Level.UnmarshalText([]byte(cfg.LogLevel)) // validated
	}
	c.guard.SetGroups(cfg.Access)
	if err := errors.Join(c.certs.Reload(cfg.TLS), c.etcdCerts.Reload(cfg.EtcdTLS())); err != nil {
		c.log.Error("new certificate files are not used, the old ones stay", "error", err)
	}
	conf.LogReload(c.log, c.cfg, c.now, cfg, func(key string) bool { return c.isLive(key, cfg) })
	c.now = cfg
	return nil
}
