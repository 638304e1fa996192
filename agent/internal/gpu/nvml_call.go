//go:build cgo && linux

package gpu

import (
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// The bounds of calls into the driver. A healthy one answers in microseconds, the
// first Init on a host without the persistence daemon takes seconds.
const (
	initBound = 30 * time.Second
	callBound = 3 * time.Second
)

func newGate() chan struct{} { return make(chan struct{}, 1) }

// ask makes one call into the driver, within a bound. The gate lets one call in at
// a time, so a driver that hangs holds one goroutine and no more.
func ask[T any](gate chan struct{}, bound time.Duration, call func() (T, nvml.Return)) (T, error) {
	type answer struct {
		value T
		ret   nvml.Return
	}
	var zero T
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case gate <- struct{}{}:
	case <-timer.C:
		return zero, ErrHung
	}
	done := make(chan answer, 1)
	go func() {
		v, ret := call()
		<-gate // before the answer: Close takes a full gate for a hung call
		done <- answer{v, ret}
	}()
	select {
	case a := <-done:
		return a.value, failure(a.ret)
	case <-timer.C:
		return zero, ErrHung
	}
}

// failure turns NVML's return value into an error that can be branched on.
func failure(ret nvml.Return) error {
	switch ret {
	case nvml.SUCCESS:
		return nil
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_GPU_NOT_FOUND:
		return fmt.Errorf("%w (%w)", ErrLost, ret)
	case nvml.ERROR_RESET_REQUIRED:
		return fmt.Errorf("GPU needs a reset: %w", ret)
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return fmt.Errorf("driver and library differ, as after an upgrade: reboot the host or reload the driver: %w", ret)
	}
	return ret
}
