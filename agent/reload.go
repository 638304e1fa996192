package agent

import (
	"fmt"
	"slices"
	"strings"

	"warmd/agent/conf"
)

// live are the keys that Reload puts into effect, and the tables that are live as a
// whole. What is not here is what sockets, loops and files were opened with.
var live = []string{"log_level", "model_roots", "allow_args", "allow_env", "warm", "gossip.keys_file", "access.read", "access.place", "access.admin"}

// isLive reports whether a key can change while the agent runs. How many workers are
// kept warm can, on a single device too; certificates can where there are some.
func (a *Agent) isLive(key string, cfg Config) bool {
	switch table, _, _ := strings.Cut(key, "."); table {
	case "devices":
		return strings.HasSuffix(key, ".warm")
	case "tls":
		return a.certs.CanTake(cfg.TLS)
	}
	return slices.Contains(live, key)
}

// Reload takes a new configuration into effect, as far as a running agent can, and logs
// by key what needs a restart. With an error nothing has changed. Placements under way
// go on by the rules that they were accepted by.
func (a *Agent) Reload(cfg Config) error {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("reload configuration: %w", err)
	}
	if err := a.certs.Check(cfg.TLS); err != nil {
		return fmt.Errorf("reload configuration: %w", err)
	}
	if err := cfg.Gossip.Rekey(a.opt.Gossip); err != nil { // the last step that can fail
		return fmt.Errorf("reload configuration: %w", err)
	}
	if a.opt.Level != nil {
		_ = a.opt.Level.UnmarshalText([]byte(cfg.LogLevel)) // validated
	}
	a.guard.SetGroups(cfg.Access)
	if err := a.certs.Reload(cfg.TLS); err != nil {
		a.log.Error("new certificate files are not used, the old ones stay", "error", err)
	}
	before := a.live.Swap(&cfg)
	for _, d := range a.devices {
		d.SetWarm(a.warmOn(d.ID()))
	}
	conf.LogReload(a.log, a.cfg, *before, cfg, func(key string) bool { return a.isLive(key, cfg) })
	return nil
}
