package access

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// TestMain lets the test binary play a client, so that one can be started with
// another user and other groups.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "play-client" {
		playClient(os.Args[2], os.Args[3], os.Args[4])
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// playClient sends one request and prints the status and the answer.
func playClient(network, addr, target string) {
	method, path, _ := strings.Cut(target, " ")
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	req, err := http.NewRequest(method, "http://warmd"+path, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	resp, err := (&http.Client{Transport: &http.Transport{DialContext: dial}}).Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	fmt.Printf("%d %s", resp.StatusCode, b)
}

// askAs sends a request from a process of its own, with another user and groups where
// cred says so.
func askAs(t *testing.T, cred *syscall.Credential, ln net.Addr, target string) string {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "play-client", ln.Network(), ln.String(), target)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	if cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		// Another user cannot read our build folder: the binary goes in by descriptor.
		f, err := os.Open(self)
		require.NoError(t, err)
		defer f.Close()
		cmd.ExtraFiles, cmd.Path = []*os.File{f}, "/proc/self/fd/3"
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}
