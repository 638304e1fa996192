package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	agentapi "warmd/agent/api"
	"warmd/placement"
)

// watch looks at the processes of a node, which is this host.
type watch struct {
	agent *agentapi.Client
	// sessions are those of every worker that was seen: a process that is left over may
	// have lost its parents, and keeps its session.
	sessions map[int]bool
	// patience bounds the wait for what is still being cleaned up: connections of our
	// own that idle, a fork under way.
	patience time.Duration
}

// here refuses an agent whose processes are not on this host, or not ours to look at:
// a leak that is not seen is not there.
func here(n agentapi.NodeStatus) error {
	_, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.PID))
	_, gone := os.Stat(n.RunDir)
	switch {
	case n.PID == 0 || errors.Is(err, fs.ErrNotExist) || gone != nil:
		return placement.Errorf(placement.CodeBadRequest, "find the agent of %s: it is not a process of this host, or it is an older warmd", n.Capacity.Node).
			WithHint("run this on the node itself; --agent names its socket")
	case err != nil:
		return placement.Errorf(placement.CodeForbidden, "look at the agent of %s: %v", n.Capacity.Node, err).
			WithHint("run this as root, or as the user that runs the agent")
	}
	return nil
}

// see remembers the sessions of the workers that live now.
func (w *watch) see(ctx context.Context) error {
	n, err := w.agent.Node(ctx)
	if err != nil {
		return fmt.Errorf("look at workers: %w", err)
	}
	for _, k := range n.Workers {
		for _, pid := range []int{k.EnginePID, k.APIPID} {
			if p, ok := readProcess(pid); ok {
				w.sessions[p.session] = true
			}
		}
	}
	return nil
}

// settled takes a footprint when nothing moves any more. With one to compare with, it
// waits until nothing is left over, or w.patience is over.
func (w *watch) settled(ctx context.Context, before *Footprint) (Footprint, error) {
	var last Footprint
	for begin, first := time.Now(), true; ; first = false {
		now, err := w.footprint(ctx)
		if err != nil {
			return now, err
		}
		still := !first && now.Processes == last.Processes && now.AgentFDs == last.AgentFDs && now.ZygoteFDs == last.ZygoteFDs && len(now.Sockets) == len(last.Sockets)
		if late := time.Since(begin) > w.patience; late || (still && (before == nil || len(leaks(*before, now)) == 0)) {
			return now, nil
		}
		last = now
		if !pause(ctx, 500*time.Millisecond) {
			return now, ctx.Err()
		}
	}
}

// rssGrowth is how much agent and zygotes may grow.
const rssGrowth = 0.05

// leaks says what is there after and was not before, empty when it is all right.
func leaks(before, after Footprint) (out []string) {
	count := func(what string, was, is int) {
		if is > was {
			out = append(out, fmt.Sprintf("%d more %s than before", is-was, what))
		}
	}
	count("processes", before.Processes, after.Processes)
	count("open files in the agent", before.AgentFDs, after.AgentFDs)
	count("open files in zygotes", before.ZygoteFDs, after.ZygoteFDs)
	count("shared memory segments", len(before.Shared), len(after.Shared))
	count("socket files", len(before.Sockets), len(after.Sockets))
	count("slots in quarantine", before.quarantined, after.quarantined)
	for _, m := range []struct {
		what    string
		was, is int64
	}{{"the agent", before.AgentRSS, after.AgentRSS}, {"the zygotes", before.ZygoteRSS, after.ZygoteRSS}} {
		if g := growth(m.was, m.is); g > rssGrowth {
			out = append(out, fmt.Sprintf("resident memory of %s grew by %.1f %%", m.what, g*100))
		}
	}
	return out
}

func growth(was, is int64) float64 {
	if was == 0 {
		return 0
	}
	return float64(is)/float64(was) - 1
}
