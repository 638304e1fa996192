package otlp

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Birth is when a process of this host was made, to the clock tick of 10 ms. An
// engine's first span comes seconds after it: in between, Python starts and
// imports, which no span covers and which is what a cold start mostly is.
func Birth(pid int) (time.Time, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return time.Time{}, fmt.Errorf("read birth of process %d: %w", pid, err)
	}
	// The second field is the program's name, in brackets, and may hold anything.
	f := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(f) < 20 {
		return time.Time{}, fmt.Errorf("read birth of process %d: a line of %d fields", pid, len(f))
	}
	ticks, err := strconv.ParseInt(string(f[19]), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read birth of process %d: %w", pid, err)
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}, fmt.Errorf("read time since boot: %w", err)
	}
	const userHz = 100 // of every Linux that Go runs on
	age := time.Duration(up.Nano()) - time.Duration(ticks)*(time.Second/userHz)
	return time.Now().Add(-age).Round(0), nil
}
