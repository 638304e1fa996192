package device

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// memorySlack is what the driver may keep of a GPU's memory after a process ended.
const memorySlack = 512 << 20

// proveFree returns once none of the processes holds memory of the device and, when
// nothing else of ours runs there, the memory is back to what it was. On a CPU the
// end of the processes is the proof.
func (d *Device) proveFree(pids []int, before int64) error {
	defer d.measure()
	if d.cfg.Kind == "cpu" {
		return nil
	}
	end := time.Now().Add(d.cfg.Timings.Prove)
	for {
		err := d.held(pids, before)
		if err == nil || time.Now().After(end) {
			return err
		}
		if !d.sleep(50 * time.Millisecond) {
			return context.Cause(d.ctx)
		}
	}
}

func (d *Device) held(pids []int, before int64) error {
	there, err := d.cfg.Memory.PIDs()
	if err != nil {
		return fmt.Errorf("list processes of %s: %w", d.cfg.ID, err)
	}
	for _, pid := range pids {
		if slices.Contains(there, pid) {
			return fmt.Errorf("process %d still holds memory of %s", pid, d.cfg.ID)
		}
	}
	free, _, err := d.cfg.Memory.Free()
	if err != nil {
		return fmt.Errorf("measure memory of %s: %w", d.cfg.ID, err)
	}
	if v := d.View(); len(v.Workers) <= 1 && len(there) == 0 && free < before-memorySlack {
		return fmt.Errorf("%d MiB of %s were not returned (%d MiB free, %d MiB before)", (before-free)>>20, d.cfg.ID, free>>20, before>>20)
	}
	return nil
}

// sleep waits, and reports false when the agent ends.
func (d *Device) sleep(t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-d.ctx.Done():
		return false
	}
}
