package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// The units of the packages.
var (
	agentUnits       = []string{"warmd-agent.socket", "warmd-agent.service"}
	coordinatorUnits = []string{"warmd-coordinator.socket", "warmd-coordinator.service"}
)

// unitState is what systemd says about a unit.
type unitState struct {
	load, active, enabled, result string
}

// checkUnits asks systemd, where it runs, whether the packaged units are enabled and
// well, and the daemons' own judgement of their configuration.
func (h host) checkUnits(ctx context.Context) []finding {
	systemctl := h.look("systemctl")
	if !exists(h.path("/run/systemd/system")) || systemctl == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*doctorTime)
	defer cancel()
	state := func(unit string) (s unitState) {
		out, _ := exec.CommandContext(ctx, systemctl, "show", "--property=LoadState,ActiveState,UnitFileState,Result", unit).Output()
		for line := range strings.Lines(string(out)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "LoadState":
				s.load = value
			case "ActiveState":
				s.active = value
			case "UnitFileState":
				s.enabled = value
			case "Result":
				s.result = value
			}
		}
		return s
	}
	if state(agentUnits[1]).load != "loaded" {
		return nil // the package is not installed
	}
	var out []finding
	well := []string{}
	check := func(units []string, optional bool) (wanted bool) {
		for _, u := range units {
			s := state(u)
			on := strings.HasPrefix(s.enabled, "enabled")
			wanted = wanted || on || s.active == "active"
			logs := "journalctl -u " + u + " -n 50 says why; then systemctl restart " + u
			switch {
			case s.load == "masked":
				out = append(out, finding{"unit", warn, u + " is masked: it cannot be started", "systemctl unmask " + u})
			case s.active == "failed":
				out = append(out, finding{"unit", broken, fmt.Sprintf("%s has failed (%s)", u, s.result), logs})
			case s.active == "active" && on:
				well = append(well, u)
			case s.active == "active":
				out = append(out, finding{"unit", warn, u + " runs, but is not enabled: after a boot it does not", "systemctl enable " + u})
			case s.active == "activating" || s.active == "reloading":
				out = append(out, finding{"unit", warn, u + " is still " + s.active, "ask again in a moment; systemctl status " + u})
			case strings.HasSuffix(u, ".service") && on:
				well = append(well, u+" (starts with the first request)")
			case optional && !on:
			case on:
				out = append(out, finding{"unit", broken, u + " is enabled, but does not run", "systemctl start " + u})
			default:
				out = append(out, finding{"unit", warn, u + " is not enabled", "systemctl enable --now " + u})
			}
		}
		return wanted
	}
	check(agentUnits, false)
	coordinator := check(coordinatorUnits, true)
	failed, _ := exec.CommandContext(ctx, systemctl, "list-units", "--failed", "--plain", "--no-legend", "warmd-runtime@*.service").Output()
	for line := range strings.Lines(string(failed)) {
		if f := strings.Fields(line); len(f) > 0 {
			out = append(out, finding{"unit", warn, f[0] + " has failed: a runtime's workers could not be kept", "journalctl -u '" + f[0] + "' -n 50"})
		}
	}
	if len(well) > 0 {
		out = append(out, finding{"unit", fine, strings.Join(well, ", "), ""})
	}
	out = append(out, h.checkConfig(ctx, "agent")...)
	if coordinator {
		out = append(out, h.checkConfig(ctx, "coordinator")...)
	}
	return out
}

// checkConfig lets the daemon itself judge its configuration: it knows every key.
func (h host) checkConfig(ctx context.Context, daemon string) []finding {
	warmd, file := h.look("warmd"), "/etc/warmd/"+daemon+".toml"
	if warmd == "" || !exists(h.path(file)) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, doctorTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, warmd, daemon, "--config", h.path(file), "--check-config")
	cmd.WaitDelay = time.Second
	said, err := cmd.CombinedOutput()
	var out []finding
	for line := range strings.Lines(string(said)) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "warning: "); ok {
			out = append(out, finding{"config", warn, text, "see man warmd-" + daemon + ".toml"})
		} else if err != nil && line != "" {
			out = append(out, finding{"config", broken, strings.TrimPrefix(line, "warmd: "), "correct it, then systemctl reload warmd-" + daemon})
		}
	}
	if len(out) == 0 && err == nil {
		out = append(out, finding{"config", fine, h.path(file) + " is valid", ""})
	}
	return out
}
