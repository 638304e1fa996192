package nspawn

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
)

// Promise 6 of issue 4: who may do what, on a real host with real users.

// doing is something that needs a role, on a server of a host.
type doing struct {
	need, server, method, path, body string
	allowed                          int // the status for whoever may
}

var doings = []doing{
	{"read", "agent", "GET", "/v1/capacity", "", 200},
	{"place", "agent", "DELETE", "/v1/placements/p-none", "", 200}, // what is gone is released
	{"admin", "agent", "POST", "/v1/undrain", "", 200},
	{"read", "coordinator", "GET", "/v1/placements", "", 200},
	{"place", "coordinator", "POST", "/v1/placements?dry_run=1", `{"model":"any","runtime":"test"}`, 200},
	{"admin", "coordinator", "POST", "/v1/nodes/h1/undrain", "", 200},
}

var rank = map[string]int{"none": 0, "read": 1, "place": 2, "admin": 3}

func TestUsersOfAHostDoWhatTheirGroupsSay(t *testing.T) {
	n := theFleet(t).nodes[0]
	users := []struct{ name, groups, role string }{
		{"guest", "", "none"}, {"ann", "warmd", "read"}, {"pat", "warmd,warmd-place", "place"}, {"max", "warmd,warmd-admin", "admin"},
		{"odd", "warmd-admin", "none"}, // a role, but no way to the socket
	}
	for _, u := range users {
		n.Run(t, "id "+u.name+" 2>/dev/null || useradd -M -G '"+u.groups+"' "+u.name)
		t.Cleanup(func() { n.Run(t, "userdel "+u.name) })
	}
	for _, u := range users {
		for _, d := range doings {
			t.Run(u.name+" "+d.server+" "+d.need, func(t *testing.T) {
				since := now()
				out, err := n.TryAs(t.Context(), u.name, fmt.Sprintf("curl -sS -m 20 -o /dev/null -w %%{http_code} --unix-socket /run/warmd/%s.sock -X %s http://local%s -H 'Content-Type: application/json' -d '%s'",
					d.server, d.method, d.path, d.body))
				switch {
				case u.role == "none":
					assert.Error(t, err)
					_, err = n.TryAs(t.Context(), u.name, `python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect("/run/warmd/`+d.server+`.sock")'`)
					assert.ErrorContains(t, err, "Permission denied", "the socket's mode must refuse %s", u.name)
				case rank[u.role] >= rank[d.need]:
					assert.Equal(t, fmt.Sprint(d.allowed), out, "%v", err)
					if d.need != "read" {
						n.untilAudited(t, d, since, d.allowed, u.name)
					}
				default:
					assert.Equal(t, "403", out, "%v", err)
					n.untilAudited(t, d, since, 403, u.name)
				}
			})
		}
	}
	assert.Equal(t, "660 warmd warmd\n660 warmd-coordinator warmd", n.Run(t, "stat -c '%a %U %G' /run/warmd/agent.sock /run/warmd/coordinator.sock"))
}

func TestCertificatesDoWhatTheirUnitSays(t *testing.T) {
	f := theFleet(t)
	n := f.nodes[0]
	for _, role := range []string{"read", "place", "admin"} {
		for _, d := range doings {
			t.Run(role+" "+d.server+" "+d.need, func(t *testing.T) {
				since := now()
				want := 403
				if rank[role] >= rank[d.need] {
					want = d.allowed
				}
				status, err := d.over(t.Context(), n, f.certs.client(role))
				require.NoError(t, err)
				assert.Equal(t, want, status)
				if want == 403 || d.need != "read" {
					n.untilAudited(t, d, since, want, "OU="+role)
				}
			})
		}
	}
}

func TestWhoShowsNoCertificateOfTheFleetIsTurnedAwayAndAudited(t *testing.T) {
	f := theFleet(t)
	n := f.nodes[0]
	strange := f.certs.client("etcd") // signed, but by the other CA
	for name, config := range map[string]*tls.Config{"none": {RootCAs: f.certs.fleet}, "of a stranger": strange} {
		for _, d := range doings[:4:4] {
			if d.need != "read" {
				continue
			}
			t.Run(name+" "+d.server, func(t *testing.T) {
				since := now()
				_, err := d.over(t.Context(), n, config)
				assert.Error(t, err)
				host.Until(t, 30*time.Second, "audited", func() error {
					return n.audited(t, d.server, since, "WARMD_WHO=unknown")
				})
			})
		}
	}
	t.Run("plain HTTP", func(t *testing.T) {
		for _, port := range []string{"7710", "7711"} {
			out, err := n.Try(t.Context(), "curl -sS -m 10 -o /dev/null -w %{http_code} http://"+n.Addr+":"+port+"/v1/capacity")
			assert.Equal(t, "400", out, "%v", err)
		}
	})
}

// over does it over TLS from outside the fleet.
func (d doing) over(ctx context.Context, n *node, config *tls.Config) (status int, err error) {
	port := map[string]string{"agent": "7710", "coordinator": "7711"}[d.server]
	req, err := http.NewRequestWithContext(ctx, d.method, "https://"+n.Name+":"+port+d.path, bytes.NewReader([]byte(d.body)))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{DialContext: lab.Dial, TLSClientConfig: config, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, nil
}

// now is a moment in the journals. (Not a cursor: after one, journalctl 252 passes
// over the first entry that matches.)
func now() string { return fmt.Sprintf("--since=@%.6f", float64(time.Now().UnixMicro())/1e6) }

// untilAudited waits for the line about a request.
func (n *node) untilAudited(t testing.TB, d doing, since string, status int, who string) {
	t.Helper()
	path, _, _ := strings.Cut(d.path, "?")
	host.Until(t, 30*time.Second, "audited", func() error {
		return n.audited(t, d.server, since, fmt.Sprintf("WARMD_STATUS=%d WARMD_METHOD=%s WARMD_PATH=%s | grep -F %q", status, d.method, path, who))
	})
}

func (n *node) audited(t testing.TB, server, since, match string) error {
	_, err := n.Try(t.Context(), "journalctl -q -o cat -u warmd-"+server+".service "+since+" WARMD_AUDIT=true "+match+" | grep -q .")
	return err
}
