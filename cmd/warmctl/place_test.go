package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"warmd/placement"
)

// TestBrokenStreamIsFollowedByTheSameRequest: the connection breaks twice; the
// model is placed once, because every try carries the same request id.
func TestBrokenStreamIsFollowedByTheSameRequest(t *testing.T) {
	f := newFake(t)
	got := warmctl(t, f.console(), "place", "/models/flaky", "--verbose")
	require.Equal(t, exitOK, got.code, got.err)
	require.Contains(t, got.out, "endpoint  http://127.0.0.1:8123")
	require.Contains(t, got.err, "the connection broke; following the same placement again")
	posts := f.posts()
	require.Len(t, posts, 3)
	require.NotEmpty(t, posts[0].ID)
	require.Equal(t, posts[0], posts[1])
	require.Equal(t, posts[0], posts[2])
}

func TestStreamThatBreaksForEverIsGivenUpWithTheWayBack(t *testing.T) {
	f := newFake(t)
	got := warmctl(t, f.console(), "place", "/models/gone", "--request-id", "mine")
	require.Equal(t, exitUnavailable, got.code)
	require.Len(t, f.posts(), followTries)
	require.Equal(t, "warmctl: the coordinator went away while placing gone\n"+
		"  try: warmctl ps shows whether it goes on; the same command with --request-id mine follows it\n", got.err)
}

// TestConnectionThatDiesBeforeTheFirstLineIsTakenUpAgain: the request may have
// arrived, so the same id is sent again; a dial that failed is not repeated.
func TestConnectionThatDiesBeforeTheFirstLineIsTakenUpAgain(t *testing.T) {
	f := newFake(t)
	got := warmctl(t, f.console(), "place", "/models/reset")
	require.Equal(t, exitOK, got.code, got.err)
	posts := f.posts()
	require.Len(t, posts, 2)
	require.Equal(t, posts[0].ID, posts[1].ID)

	con := testConsole("WARMD_SERVER", "127.0.0.1:1")
	con.Poll = time.Hour
	require.Equal(t, exitUnavailable, warmctl(t, con, "place", "/models/m").code)
}

// TestColdStartSaysWhy: what the agent remarks is part of the answer.
func TestColdStartSaysWhy(t *testing.T) {
	f := newFake(t)
	got := warmctl(t, f.console(), "place", "/models/forced-cold")
	require.Equal(t, exitOK, got.code, got.err)
	require.Contains(t, got.out, "start     cold, first token after 2.81 s\n  note      VLLM_USE_V1 is read at import\n")
}

// TestRefusalIsNotRetried: an answer is an answer.
func TestRefusalIsNotRetried(t *testing.T) {
	f := newFake(t)
	got := warmctl(t, f.console(), "place", "/models/etcd-down")
	require.Equal(t, exitUnavailable, got.code)
	require.Len(t, f.posts(), 1)
}

func TestRequestCarriesEveryFlag(t *testing.T) {
	f := newFake(t)
	con := testConsole("WARMD_SERVER", f.coordinator.URL, "TRACEPARENT", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	got := warmctl(t, con, "place", "/models/opt-125m", "--runtime", "vllm", "--name", "demo", "--node", "n1", "--start", "warm", "--arg=--max-model-len=512", "--arg", "--lora-modules=a,b",
		"--env", "A=b,c=d", "--env", "E=", "--memory", "8GiB", "--timeout", "2m", "--request-id", "r-9", "--wait-capacity")
	require.Equal(t, exitOK, got.code, got.err)
	require.Equal(t, placement.Request{ID: "r-9", Model: "/models/opt-125m", Name: "demo", Runtime: "vllm", Node: "n1", Start: placement.StartWarm,
		Args: []string{"--max-model-len=512", "--lora-modules=a,b"}, Env: map[string]string{"A": "b,c=d", "E": ""}, MemoryBytes: 8 << 30, TimeoutSeconds: 120, WaitCapacity: true,
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, f.posts()[0])
}

func TestRelativeModelIsTakenFromTheCurrentFolder(t *testing.T) {
	f := newFake(t)
	t.Chdir(t.TempDir())
	require.NoError(t, os.Mkdir("opt-125m", 0o755))
	here, err := os.Getwd()
	require.NoError(t, err)
	require.Equal(t, exitOK, warmctl(t, f.console(), "place", "./opt-125m").code)
	require.Equal(t, filepath.Join(here, "opt-125m"), f.posts()[0].Model)
	require.Equal(t, exitOK, warmctl(t, f.console(), "place", "opt-125m").code)
	require.Equal(t, "opt-125m", f.posts()[1].Model, "a name is the node's to resolve")
}

// TestCtrlCTellsThatThePlacementGoesOn, before and after its id is known.
func TestCtrlCTellsThatThePlacementGoesOn(t *testing.T) {
	for _, tc := range []struct{ model, want string }{
		{"slow", "warmctl: interrupted; placement p-new1 goes on\n  try: `warmctl describe p-new1` shows it, `warmctl release p-new1` ends it\n"},
		{"silent", "warmctl: interrupted; the coordinator may have accepted the request\n  try: warmctl ps shows it; the request id is r-1\n"},
	} {
		t.Run(tc.model, func(t *testing.T) {
			f := newFake(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var errs syncBuffer
			con := f.console()
			con.Out, con.Err = io.Discard, &errs
			code := make(chan int, 1)
			go func() {
				code <- run(ctx, con, []string{"place", "/models/" + tc.model, "--request-id", "r-1", "--verbose"})
			}()
			f.wait(t, tc.model)
			if tc.model == "slow" {
				require.Eventually(t, func() bool { return strings.Contains(errs.String(), "Load weights") }, 10*time.Second, time.Millisecond)
			}
			cancel()
			require.Equal(t, exitInterrupted, <-code)
			require.True(t, strings.HasSuffix(errs.String(), tc.want), errs.String())
		})
	}
}

// TestSignalEndsARealProcessWith130 sends the signal that Ctrl-C sends.
func TestSignalEndsARealProcessWith130(t *testing.T) {
	f := newFake(t)
	cmd := exec.Command("warmctl", "place", "/models/slow", "--verbose")
	cmd.Env = append(os.Environ(), "WARMD_SERVER="+f.coordinator.URL)
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var said strings.Builder
	buf := make([]byte, 1024)
	for !strings.Contains(said.String(), "Load weights") { // it is past the first lines
		n, err := stderr.Read(buf)
		require.NoError(t, err)
		said.Write(buf[:n])
	}
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	rest, _ := io.ReadAll(stderr)
	said.Write(rest)
	var exit *exec.ExitError
	require.True(t, errors.As(cmd.Wait(), &exit))
	require.Equal(t, exitInterrupted, exit.ExitCode())
	require.Contains(t, said.String(), "placement p-new1 goes on")
}

// TestProgressIsOneLineOnATerminalAndNothingElsewhere.
func TestProgressIsOneLineOnATerminalAndNothingElsewhere(t *testing.T) {
	f := newFake(t)
	require.Empty(t, warmctl(t, f.console(), "place", "/models/opt-125m").err)

	con := f.console()
	con.ErrTTY, con.Width = true, 40
	got := warmctl(t, con, "place", "/models/opt-125m")
	require.Equal(t, exitOK, got.code)
	require.NotContains(t, got.err, "\n")
	require.Contains(t, got.err, "\r\x1b[Kplacing opt-125m: loading on n1 (warm)")
	require.True(t, strings.HasSuffix(got.err, "\r\x1b[K"), "the line is cleared at the end")
	for part := range strings.SplitSeq(got.err, "\r\x1b[K") {
		require.Less(t, len(part), 40, "a line that wraps cannot be written over")
	}
}

// TestErrorStandsOnALineOfItsOwnOnATerminal: the progress line is cleared first.
func TestErrorStandsOnALineOfItsOwnOnATerminal(t *testing.T) {
	f := newFake(t)
	con := f.console()
	con.ErrTTY = true
	got := warmctl(t, con, "place", "/models/crash")
	require.Contains(t, got.err, "\r\x1b[Kwarmctl: place crash")
}

// TestPlaceGivesUpSomeTimeAfterItsTimeout: a coordinator that never answers.
func TestPlaceGivesUpSomeTimeAfterItsTimeout(t *testing.T) {
	req := placement.Request{ID: "r-1", Model: "/m/late", TimeoutSeconds: 1}
	e := placement.AsError(placeError(context.DeadlineExceeded, "p-1", req))
	require.Equal(t, placement.CodeTimeout, e.Code)
	require.Contains(t, e.Message, "11s")
	require.Contains(t, e.Hint, "warmctl release p-1")
	e = placement.AsError(placeError(context.DeadlineExceeded, "", req))
	require.Contains(t, e.Hint, "r-1")
}

// TestCurlLineIsOneShellCommand: a shell sees the words that were meant.
func TestCurlLineIsOneShellCommand(t *testing.T) {
	for _, name := range []string{"opt-125m", "org/model:v1", "it's"} {
		p := placement.Placement{Endpoint: "http://127.0.0.1:8123/", Request: placement.Request{Name: name}}
		script := "curl() { for a; do printf '%s\\n' \"$a\"; done; }; " + curlLine(p)
		out, err := exec.Command("sh", "-c", script).Output()
		require.NoError(t, err)
		require.Equal(t, []string{"http://127.0.0.1:8123/v1/completions", "-H", "Content-Type: application/json", "-d",
			`{"model":"` + name + `","prompt":"Hello, my name is","max_tokens":16}`, ""}, strings.Split(string(out), "\n"))
	}
}

// TestEventsAreFollowedUntilCtrlC.
func TestEventsAreFollowedUntilCtrlC(t *testing.T) {
	f := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out syncBuffer
	con := f.console()
	con.Out, con.Err = &out, io.Discard
	code := make(chan int, 1)
	go func() { code <- run(ctx, con, []string{"events", "-f"}) }()
	f.wait(t, "events")
	require.Eventually(t, func() bool { return strings.Count(out.String(), "\n") == 3 }, 10*time.Second, time.Millisecond)
	cancel()
	require.Equal(t, exitInterrupted, <-code)
	require.Contains(t, out.String(), "placement.ready")
}

// syncBuffer is a buffer that a command writes and a test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
