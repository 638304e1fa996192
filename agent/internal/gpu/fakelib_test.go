//go:build cgo && linux

package gpu

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// TestMain is also the child of tests whose failure would be the end of the
// process: it opens the library that GPU_TEST_LIBRARY names and says what it saw.
func TestMain(m *testing.M) {
	if lib := os.Getenv("GPU_TEST_LIBRARY"); lib != "" {
		os.Exit(child(lib))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		for _, lib := range built {
			os.RemoveAll(filepath.Dir(lib))
		}
		os.Exit(code)
	}))
}

// seen is what the child saw, as JSON on its stdout.
type seen struct {
	Error     string
	Devices   []Device
	Memory    Memory
	Processes string
	Watched   bool
}

func child(lib string) int {
	var s seen
	inv, err := Open(Options{LibraryPath: strings.TrimPrefix(lib, "default:"), NVML: true, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		s.Error = err.Error()
	} else {
		s.Devices, _ = inv.Devices()
		s.Memory, err = inv.Memory(s.Devices[0].ID)
		s.Error = fmt.Sprint(err)
		ps, err := inv.Processes(s.Devices[0].ID)
		s.Processes = fmt.Sprint(ps, err)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		s.Watched = inv.Watch(ctx, func(Fault) {}) == nil
		cancel()
		inv.Close()
	}
	json.NewEncoder(os.Stdout).Encode(s)
	return 0
}

func inChild(t *testing.T, lib string) seen {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GPU_TEST_LIBRARY="+lib)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Run(), "the child died, as a process does that calls a function which is not there: %s", &errs)
	var s seen
	require.NoError(t, json.Unmarshal(out.Bytes(), &s))
	return s
}

var (
	buildMu sync.Mutex
	built   = map[string]string{}
)

// fakeLibrary compiles testdata/fakenvml.c, once per set of flags.
func fakeLibrary(t *testing.T, flags ...string) string {
	t.Helper()
	buildMu.Lock()
	defer buildMu.Unlock()
	key := strings.Join(flags, " ")
	if built[key] != "" {
		return built[key]
	}
	cc, err := exec.LookPath(cmp.Or(os.Getenv("CC"), "cc"))
	require.NoError(t, err, "these tests compile a stand-in for the NVIDIA driver library and need a C compiler: install gcc, or set CC")
	dir, err := os.MkdirTemp("", "fakenvml")
	require.NoError(t, err)
	lib := filepath.Join(dir, "libnvidia-ml.so.1")
	cmd := exec.Command(cc, append(append([]string{"-shared", "-fPIC", "-Wall", "-Werror"}, flags...), "-o", lib, "testdata/fakenvml.c")...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "compile testdata/fakenvml.c: %s", out)
	built[key] = lib
	return lib
}

// fake is a host whose driver is the stand-in.
type fake struct {
	t   *testing.T
	dir string
}

func newFake(t *testing.T) *fake {
	f := &fake{t, t.TempDir()}
	t.Setenv("FAKE_NVML", f.dir)
	return f
}

func (f *fake) set(name, value string) {
	tmp := filepath.Join(f.dir, "tmp")
	require.NoError(f.t, os.WriteFile(tmp, []byte(value), 0o644))
	require.NoError(f.t, os.Rename(tmp, filepath.Join(f.dir, name)))
}

func (f *fake) clear(name string) { require.NoError(f.t, os.Remove(filepath.Join(f.dir, name))) }

func (f *fake) open() *inventory {
	f.t.Helper()
	inv, err := Open(Options{LibraryPath: fakeLibrary(f.t), NVML: true})
	require.NoError(f.t, err)
	n := inv.(*inventory)
	n.watch = watchTimes{wait: 20 * time.Millisecond, probe: 20 * time.Millisecond, repeat: time.Minute, maxGap: 100 * time.Millisecond}
	f.t.Cleanup(func() { inv.Close() })
	return n
}

// watchFaults runs Watch and returns its faults as they come.
func watchFaults(t *testing.T, inv Inventory) <-chan Fault {
	ctx, cancel := context.WithCancel(context.Background())
	faults := make(chan Fault, 64)
	done := make(chan error, 1)
	go func() { done <- inv.Watch(ctx, func(f Fault) { faults <- f }) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done, "the end of the context is not an error")
	})
	return faults
}

func receive(t *testing.T, faults <-chan Fault) Fault {
	t.Helper()
	select {
	case f := <-faults:
		return f
	case <-time.After(10 * time.Second):
		require.FailNow(t, "no fault was reported")
		return Fault{}
	}
}

func TestEightGPUsAreFoundThroughTheRealLibraryPath(t *testing.T) {
	f := newFake(t)
	f.set("used.3", "1073741824")
	f.set("procs.3", "4711 1000000\n4712 -1\n4713 5\n")
	inv := f.open()

	devices, err := inv.Devices()
	require.NoError(t, err)
	require.Len(t, devices, 8)
	assert.Equal(t, Device{ID: "GPU-00000000-0000-0000-0000-000000000003", Kind: KindCUDA, Name: "NVIDIA Fake 80GB", Index: 3, TotalBytes: 80 << 30}, devices[3])

	m, err := inv.Memory(devices[3].ID)
	require.NoError(t, err)
	assert.Equal(t, Memory{Free: 79 << 30, Total: 80 << 30}, m)
	f.set("used.3", "0")
	m, err = inv.Memory(devices[3].ID)
	require.NoError(t, err)
	assert.Equal(t, Memory{Free: 80 << 30, Total: 80 << 30}, m, "memory is measured, not remembered")

	ps, err := inv.Processes(devices[3].ID)
	require.NoError(t, err)
	assert.Equal(t, []Process{{4711, 1000000}, {4712, -1}, {4713, 5}}, ps, "-1: the driver does not say")

	_, err = inv.Memory("GPU-nobody")
	assert.ErrorIs(t, err, ErrUnknownDevice)
}

func TestLostGPUIsAProblemOfThatDeviceOnly(t *testing.T) {
	f := newFake(t)
	inv := f.open()
	devices, _ := inv.Devices()
	f.set("lost.5", "")

	_, err := inv.Memory(devices[5].ID)
	require.ErrorIs(t, err, ErrLost)
	_, err = inv.Memory(devices[4].ID)
	require.NoError(t, err)

	devices, _ = inv.Devices()
	for i, d := range devices {
		assert.Equal(t, i == 5, d.Problem != "", "device %d: %q", i, d.Problem)
	}
	assert.Contains(t, devices[5].Problem, "reset it or reboot")

	f.clear("lost.5")
	_, err = inv.Memory(devices[5].ID)
	require.NoError(t, err)
	devices, _ = inv.Devices()
	assert.Empty(t, devices[5].Problem, "a GPU that answers again is well again")
}

func TestGPULostBeforeTheStartIsListedWithItsProblem(t *testing.T) {
	f := newFake(t)
	f.set("lost.2", "")
	devices, err := f.open().Devices()
	require.NoError(t, err)
	require.Len(t, devices, 8)
	assert.Equal(t, "gpu-2", devices[2].ID)
	assert.Contains(t, devices[2].Problem, "lost")
}

func TestHungDriverGivesAnErrorAndHoldsOneGoroutine(t *testing.T) {
	f := newFake(t)
	inv := f.open()
	inv.bound = 50 * time.Millisecond
	devices, _ := inv.Devices()
	f.set("hang.1", "")
	for range 3 {
		_, err := inv.Memory(devices[1].ID)
		require.ErrorIs(t, err, ErrHung)
	}
	assert.Len(t, inv.units[1].gate, 1, "one call is in the driver, the later ones never got there")
	assert.ErrorIs(t, inv.Close(), ErrHung, "shutting down would hang as well")
	devices, _ = inv.Devices()
	assert.Contains(t, devices[1].Problem, "does not answer")
	f.clear("hang.1")
	require.Eventually(t, func() bool { return len(inv.units[1].gate) == 0 }, 5*time.Second, time.Millisecond)
}

func TestXidOfAProgramIsReportedAndTheDeviceStaysWell(t *testing.T) {
	f := newFake(t)
	inv := f.open()
	faults := watchFaults(t, inv)
	f.set("xid", "6 31 4294967295")
	got := receive(t, faults)
	assert.Equal(t, inv.units[6].ID, got.Device)
	assert.Equal(t, 31, got.Xid)
	assert.False(t, got.Fatal)
	devices, _ := inv.Devices()
	assert.Empty(t, devices[6].Problem)
}

func TestFatalXidTakesItsDeviceAwayForGood(t *testing.T) {
	f := newFake(t)
	inv := f.open()
	faults := watchFaults(t, inv)
	f.set("xid", "6 79 4294967295")
	got := receive(t, faults)
	assert.Equal(t, 79, got.Xid)
	assert.True(t, got.Fatal)
	assert.Contains(t, got.Message, "fallen off the bus")
	_, err := inv.Memory(inv.units[6].ID)
	require.NoError(t, err)
	devices, _ := inv.Devices()
	assert.Contains(t, devices[6].Problem, "Xid 79", "an answer about memory does not make an Xid undone")
	assert.Empty(t, devices[5].Problem)
}

func TestWatchFindsAGPUThatIsLostWithoutAnEvent(t *testing.T) {
	f := newFake(t)
	inv := f.open()
	faults := watchFaults(t, inv)
	f.set("lost.7", "")
	got := receive(t, faults)
	assert.Equal(t, inv.units[7].ID, got.Device)
	assert.True(t, got.Fatal)
	assert.Zero(t, got.Xid)
	f.set("xid", "0 13 4294967295")
	assert.Equal(t, 13, receive(t, faults).Xid, "the lost GPU is told once, the others are still watched")
	f.clear("lost.7")
	got = receive(t, faults)
	assert.Equal(t, Fault{Device: inv.units[7].ID, Message: "answers again"}, got)
	f.set("lost.7", "")
	assert.True(t, receive(t, faults).Fatal, "lost again is news")
}

func TestLastingErrorOfTheEventWaitIsNoBusyLoop(t *testing.T) {
	f := newFake(t)
	inv := f.open()
	f.set("wait", "15")
	faults := watchFaults(t, inv)
	waited := func() int { b, _ := os.ReadFile(filepath.Join(f.dir, "waited")); return len(b) }
	require.Eventually(t, func() bool { return waited() >= 2 }, 5*time.Second, time.Millisecond)
	began, before := time.Now(), waited()
	require.Eventually(t, func() bool { return waited() >= before+4 }, 10*time.Second, time.Millisecond)
	assert.GreaterOrEqual(t, time.Since(began), 4*inv.watch.wait, "the pause between tries grows")
	assert.Empty(t, faults, "no device is lost: every one of them answers")
	f.clear("wait")
	f.set("xid", "1 48 4294967295")
	assert.Equal(t, 48, receive(t, faults).Xid, "events are read again once waiting works again")
}

func TestMIGSlicesAreTheDevicesOfTheirGPU(t *testing.T) {
	f := newFake(t)
	f.set("mig.0", "2")
	f.set("mig.1", "0")
	inv := f.open()
	devices, _ := inv.Devices()
	require.Len(t, devices, 9)
	assert.Equal(t, "MIG-00000000-0000-0000-0001-000000000000", devices[0].ID)
	assert.Equal(t, "MIG-00000000-0000-0000-0003-000000000000", devices[1].ID)
	assert.Equal(t, "GPU-00000000-0000-0000-0000-000000000000", devices[1].Parent)
	assert.EqualValues(t, 10<<30, devices[1].TotalBytes)
	assert.Contains(t, devices[2].Problem, "no slice", "MIG is on, but nothing can run there")

	faults := watchFaults(t, inv)
	f.set("xid", "0 94 3")
	assert.Equal(t, devices[1].ID, receive(t, faults).Device, "an event of one slice is the fault of one slice")
	f.set("xid", "0 79 4294967295")
	both := []string{receive(t, faults).Device, receive(t, faults).Device}
	assert.ElementsMatch(t, []string{devices[0].ID, devices[1].ID}, both, "an event of the GPU concerns each slice")
}

func TestInitFailureFallsBackToTheCPUUnlessNVMLIsAskedFor(t *testing.T) {
	f := newFake(t)
	f.set("init", "9")
	_, err := Open(Options{LibraryPath: fakeLibrary(t), NVML: true})
	require.ErrorContains(t, err, "init NVML: Driver Not Loaded")

	var log bytes.Buffer
	inv, err := Open(Options{LibraryPath: fakeLibrary(t), Log: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, err)
	devices, _ := inv.Devices()
	assert.Equal(t, CPUDevice, devices[0].ID)
	assert.Contains(t, log.String(), "level=WARN", "a library without a working driver is worth a word")
}

func TestNoGPUMeansTheCPU(t *testing.T) {
	f := newFake(t)
	f.set("gpus", "0")
	inv, err := Open(Options{LibraryPath: fakeLibrary(t)})
	require.NoError(t, err)
	devices, _ := inv.Devices()
	assert.Equal(t, CPUDevice, devices[0].ID)
	_, err = Open(Options{LibraryPath: fakeLibrary(t), NVML: true})
	assert.ErrorIs(t, err, errNoGPU)
	_, err = Open(Options{LibraryPath: "/nonexistent/libnvidia-ml.so.1", NVML: true})
	assert.ErrorIs(t, err, errNoLibrary)
}

func TestClosedInventoryRefusesInsteadOfCrashing(t *testing.T) {
	f := newFake(t)
	inv := f.open()
	require.NoError(t, inv.Close())
	require.NoError(t, inv.Close())
	_, err := inv.Memory(inv.units[0].ID)
	require.ErrorContains(t, err, "closed")
	_, err = inv.Processes(inv.units[0].ID)
	require.ErrorContains(t, err, "closed")
}

func TestDriverWithoutOptionalFunctionsLosesFeaturesNotTheProcess(t *testing.T) {
	newFake(t)
	s := inChild(t, fakeLibrary(t, "-DNO_OPTIONAL"))
	require.Len(t, s.Devices, 8)
	assert.EqualValues(t, 80<<30, s.Memory.Free)
	assert.Contains(t, s.Processes, "update it")
	assert.True(t, s.Watched)
}

func TestLibraryThatIsNotNVMLIsRefusedNotCalled(t *testing.T) {
	newFake(t)
	s := inChild(t, fakeLibrary(t, "-DNOT_NVML"))
	assert.Contains(t, s.Error, "is not NVML or too old")
	assert.Contains(t, s.Error, "nvmlInit")
}

func TestFaultsAreErrorsThatCanBeBranchedOn(t *testing.T) {
	for ret, want := range map[error]error{failure(15): ErrLost, failure(28): ErrLost} {
		assert.True(t, errors.Is(ret, want), "%v", ret)
	}
	assert.NoError(t, failure(0))
}
