package host

import (
	"context"
	"fmt"
	"syscall"
)

// powerOffSignal asks systemd as PID 1 for an orderly shutdown: SIGRTMIN+4.
const powerOffSignal = syscall.Signal(34 + 4)

// Stop shuts a host down in order.
func (h *Host) Stop(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leader == 0 {
		return nil
	}
	if err := syscall.Kill(h.leader, powerOffSignal); err != nil {
		return fmt.Errorf("stop %s: %w", h.Name, err)
	}
	select {
	case <-h.ended:
		return h.powerOff()
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", h.Name, ctx.Err())
	}
}

// Kill cuts a host's power and its cable. Start switches it on again; its disk is as it was.
func (h *Host) Kill() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.powerOff()
}

func (h *Host) powerOff() error {
	h.leader = 0
	if err := h.cable("down"); err != nil {
		return err
	}
	if err := killCgroup(h.cgroup); err != nil {
		return fmt.Errorf("cut power of %s: %w", h.Name, err)
	}
	<-h.ended
	return nil
}

// Pause stops every process of a host; its kernel still answers, as that of a host
// that swaps itself to death does.
func (h *Host) Pause() error { return freezeCgroup(h.cgroup, true) }

// Resume lets a paused host go on.
func (h *Host) Resume() error { return freezeCgroup(h.cgroup, false) }
