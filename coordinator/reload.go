package coordinator

import (
	"fmt"
	"slices"

	"warmd/agent/conf"
)

// live are the keys that Reload puts into effect.
var live = []string{"log_level", "gossip.keys_file"}

func isLive(key string) bool { return slices.Contains(live, key) }

// Reload takes a new configuration into effect, as far as a running coordinator can,
// and logs by key what needs a restart. With an error nothing has changed.
func (c *Coordinator) Reload(cfg Config) error {
	c.reloading.Lock()
	defer c.reloading.Unlock()
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("reload configuration: %w", err)
	}
	keys, err := cfg.Gossip.ReadKeys()
	if err != nil {
		return fmt.Errorf("reload configuration: %w", err)
	}
	if g, ok := c.opt.View.(interface{ SetKeys([][]byte) error }); ok {
		if err := g.SetKeys(keys); err != nil { // the only step that can fail, so the first
			return fmt.Errorf("reload configuration: gossip.keys_file: %w", err)
		}
	}
	if c.opt.Level != nil {
		_ = c.opt.Level.UnmarshalText([]byte(cfg.LogLevel)) // validated
	}
	before := c.now
	c.now = cfg
	changed := slices.DeleteFunc(conf.Changed(before, cfg), func(key string) bool { return !isLive(key) })
	c.log.Info("configuration read again", "changed", changed)
	if late := slices.DeleteFunc(conf.Changed(c.cfg, cfg), isLive); len(late) > 0 {
		c.log.Warn("needs a restart", "keys", late)
	}
	return nil
}
