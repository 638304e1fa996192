package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Until polls until ok answers nil and returns how long that took; the last error is the failure.
func Until(t testing.TB, within time.Duration, what string, ok func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := ok()
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > within {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// WaitUnit waits until a unit is in a state (active, inactive, failed) and returns how long that took.
func (h *Host) WaitUnit(t testing.TB, unit, state string, within time.Duration) time.Duration {
	t.Helper()
	return Until(t, within, h.Name+": "+unit+" "+state, func() error {
		out, err := h.Try(t.Context(), "systemctl show -P ActiveState "+unit)
		if err == nil && out != state {
			err = fmt.Errorf("it is %s", out)
		}
		return err
	})
}

// Listener is a socket that waits for others.
type Listener struct {
	Network string // tcp or udp
	Addr    string // address:port
	Who     string // what ss says about the process
}

// Listeners lists the sockets of a host that wait for connections or datagrams.
func (h *Host) Listeners(t testing.TB) []Listener {
	t.Helper()
	var all []Listener
	for line := range strings.Lines(h.Run(t, "ss -Hltunp")) {
		// Netid State Recv-Q Send-Q Local Peer Process
		if f := strings.Fields(line); len(f) >= 6 {
			all = append(all, Listener{f[0], f[4], strings.Join(f[6:], " ")})
		}
	}
	return all
}

// Explain prints the end of each host's journal and console if the test fails; the
// whole of it goes into the folder that WARMD_TEST_JOURNALS names.
func (l *Lab) Explain(t testing.TB) {
	since := time.Now()
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, h := range l.Hosts() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			journal, err := h.Try(ctx, fmt.Sprintf("journalctl --no-pager -q -o short-precise --since=@%d", since.Unix()))
			cancel()
			if dir := os.Getenv("WARMD_TEST_JOURNALS"); dir != "" {
				name := strings.NewReplacer("/", "-", " ", "_").Replace(t.Name()) + "." + h.Name + ".journal"
				if err := os.WriteFile(filepath.Join(dir, name), []byte(journal), 0o644); err != nil {
					t.Log(err)
				}
			}
			if err != nil {
				console, _ := os.ReadFile(h.console())
				journal = fmt.Sprintf("no journal: %v\nconsole:\n%s", err, tail(string(console), 2000))
			}
			t.Logf("--- journal of %s since the test began\n%s", h.Name, tail(journal, 12000))
		}
	})
}
