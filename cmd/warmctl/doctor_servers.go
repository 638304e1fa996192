package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	agentapi "warmd/agent/api"
	"warmd/placement"
)

// doctorTime bounds one question to one server.
const doctorTime = 3 * time.Second

// skewLimit is how far two clocks may differ before traces and ages mislead.
const skewLimit = 2 * time.Second

// checkServers asks the coordinator and the agent about themselves. A server that
// was never started is no fault of the host; one that was named, or whose socket
// is there, has to answer.
func checkServers(c *call) []finding {
	ctx, cancel := context.WithTimeout(c.ctx, doctorTime)
	defer cancel()
	out := checkCoordinator(ctx, c)
	ctx, cancel = context.WithTimeout(c.ctx, doctorTime)
	defer cancel()
	return append(out, checkAgent(ctx, c)...)
}

func checkCoordinator(ctx context.Context, c *call) []finding {
	k, at, err := c.coordinator()
	if err != nil {
		return []finding{serverDown(c, at, err)}
	}
	clock := checkDate(ctx, c, "coordinator", k.Conn)
	s, err := k.Status(ctx)
	if err != nil {
		return append(clock, serverDown(c, at, err))
	}
	out := append(clock, finding{"coordinator", fine, fmt.Sprintf("%s (%s) answers at %s", s.Name, s.Version, at.addr), ""})
	if s.Etcd != "" && s.Etcd != "ok" {
		out = append(out, finding{"etcd", broken, s.Etcd, "start etcd, or check the endpoints in the coordinator's configuration"})
	}
	fleet, err := k.Fleet(ctx)
	if err != nil {
		return append(out, serverDown(c, at, err))
	}
	alive := 0
	for _, n := range fleet.Nodes {
		if n.Alive {
			alive++
			continue
		}
		out = append(out, finding{"fleet", warn, fmt.Sprintf("node %s is %s, last heard %s ago", n.Node, nodeStatus(n), seenAge(n)), "systemctl status warmd-agent on " + n.Node})
	}
	if alive == 0 {
		out = append(out, finding{"fleet", broken, "the coordinator sees no node that is alive", "start an agent, and check that both use the same join addresses and gossip key"})
	} else {
		out = append(out, finding{"fleet", fine, plural(alive, "node") + " alive", ""})
	}
	return out
}

// checkDate asks for what needs no role, and compares the clocks.
func checkDate(ctx context.Context, c *call, who string, k *agentapi.Conn) []finding {
	asked := c.Now()
	resp, err := k.Open(ctx, http.MethodGet, "/healthz", nil, nil)
	if err != nil {
		return nil // the next question says what is wrong
	}
	_ = resp.Body.Close()
	return checkSkew(who, resp.Header, asked, c.Now())
}

func checkAgent(ctx context.Context, c *call) []finding {
	k, at, err := c.agent()
	if err != nil {
		return []finding{serverDown(c, at, err)}
	}
	clock := checkDate(ctx, c, "agent", k.Conn)
	s, err := k.Node(ctx)
	if err != nil {
		return append(clock, serverDown(c, at, err))
	}
	n := s.Capacity
	slots, free, busy, quarantined, warm := n.Totals()
	out := append(clock, finding{"agent", fine, fmt.Sprintf("%s (%s) answers at %s: %s, %d free, %d busy, %d warm", n.Node, n.Version, at.addr, plural(slots, "slot"), free, busy, warm), ""})
	if !s.Ready {
		out = append(out, finding{"agent", warn, "it is still starting", "ask again in a moment"})
	}
	if n.Draining {
		out = append(out, finding{"agent", warn, "it drains: no new placements", "warmctl undrain " + n.Node})
	}
	if quarantined > 0 {
		out = append(out, finding{"agent", warn, plural(quarantined, "slot") + " in quarantine", "warmctl workers says why; end what still holds the memory"})
	}
	for _, d := range n.Devices {
		if d.Problem != "" {
			out = append(out, finding{"device", broken, d.ID + ": " + d.Problem, "warmctl events, and the agent's log"})
		}
	}
	for _, r := range n.Runtimes {
		switch {
		case r.Problem != "":
			out = append(out, finding{"runtime", broken, r.Name + ": " + r.Problem, "warmd runtime check " + r.Name})
		case r.Zygote == "down":
			out = append(out, finding{"runtime", broken, r.Name + ": its zygote is down, starts are cold", "warmctl events, warmd runtime check " + r.Name})
		}
	}
	if len(n.Runtimes) == 0 {
		out = append(out, finding{"runtime", broken, "the agent has no runtime", "warmd runtime add NAME --vllm 0.32.0 --device cpu|cuda"})
	}
	return out
}

func serverDown(c *call, at address, err error) finding {
	role, why := at.role, c.notReached(err)
	if why == "" {
		return finding{role, broken, placement.AsError(err).Message, placement.AsError(err).Hint}
	}
	e := placement.AsError(explainUnreached(err, why, at))
	path, isSocket := strings.CutPrefix(at.addr, "unix://")
	if _, statErr := os.Stat(path); at.given == "" && isSocket && os.IsNotExist(statErr) {
		return finding{role, warn, "not started (no socket " + path + ")", e.Hint}
	} else if isSocket && statErr != nil && !os.IsNotExist(statErr) {
		e.Hint = socketHint(statErr, e.Hint)
	}
	return finding{role, broken, e.Message, e.Hint}
}

func socketHint(err error, hint string) string {
	if os.IsPermission(err) {
		return "the folder of the socket may not be entered: sudo usermod -aG warmd $USER, then log in again"
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return hint + " (" + p.Err.Error() + ")"
	}
	return hint
}
