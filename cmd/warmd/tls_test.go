package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	agentapi "warmd/agent/api"
	"warmd/agent/api/access"
	"warmd/agent/api/access/accesstest"
	"warmd/agent/api/access/pki"
	coordapi "warmd/coordinator/api"
	"warmd/placement"
)

// tlsHost is a host whose agent and coordinator are reached over mutual TLS.
type tlsHost struct {
	*host
	fleet              *accesstest.Fleet
	agentAt, coordAt   string // host:port
	agentOf, coordinOf access.Files
}

func newTLSHost(t *testing.T) *tlsHost {
	t.Helper()
	f := accesstest.New(t)
	x := &tlsHost{fleet: f}
	x.issue()
	flags := func(c access.Files) []string {
		return []string{"--tls-ca", c.CA, "--tls-cert", c.Cert, "--tls-key", c.Key}
	}
	x.host = execHost(t, 2, func(h *host) {
		x.coordAt = address(t)
		h.agentMore = flags(x.agentOf)
		h.coordMore = append(flags(x.coordinOf), "--listen", x.coordAt)
	})
	s, err := x.node.Node(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	x.agentAt = s.Capacity.Addr
	return x
}

// issue makes the servers' certificates, or makes them anew.
func (x *tlsHost) issue() {
	x.agentOf = x.fleet.Files(access.UnitAgent, "host1")
	x.coordinOf = x.fleet.Files(access.UnitCoordinator, "coord1")
}

// client calls the coordinator; with fresh, every call is a handshake.
func (x *tlsHost) client(t *testing.T, c *access.Certificates, fresh bool) *coordapi.Client {
	t.Helper()
	tr := agentapi.NewTransport(c.Client("coord1", access.UnitCoordinator))
	tr.DisableKeepAlives = fresh
	cl, err := coordapi.NewClient("https://"+x.coordAt, tr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func (x *tlsHost) atAgent(t *testing.T, c *access.Certificates, fresh bool) *agentapi.Client {
	t.Helper()
	tr := agentapi.NewTransport(c.Client("host1", access.UnitAgent))
	tr.DisableKeepAlives = fresh
	cl, err := agentapi.NewClient("https://"+x.agentAt, tr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func loadCerts(t *testing.T, f access.Files) *access.Certificates {
	t.Helper()
	c, err := access.Load(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAFleetOverTLSPlacesAndTurnsStrangersAway(t *testing.T) {
	x := newTLSHost(t)
	place := x.client(t, loadCerts(t, x.fleet.Files("place", "ada")), false)
	p, err := place.Place(t.Context(), placement.Request{Model: "a", Runtime: "ok"}, "ready", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.client(t, loadCerts(t, x.fleet.Files("read", "bob")), false).Release(t.Context(), p.ID, 0); placement.AsError(err).Code != placement.CodeForbidden {
		t.Errorf("a reader's release: %v, want forbidden", err)
	}
	stranger := accesstest.New(t)
	stranger.Trust(stranger.CA, x.fleet.CA)
	for who, c := range map[string]*access.Certificates{
		"does not know the CA": loadCerts(t, stranger.Files("admin", "eve")),
		"has expired":          loadCerts(t, x.fleet.Issue(pki.Leaf{Name: "late", Unit: "admin", Client: true, Life: time.Hour}, time.Now().Add(-3*time.Hour))),
	} {
		if _, err := x.client(t, c, false).Fleet(t.Context()); err == nil || !strings.Contains(err.Error(), who) {
			t.Errorf("%s: %v", who, err)
		}
		if _, err := x.atAgent(t, c, false).Node(t.Context()); err == nil || !strings.Contains(err.Error(), who) {
			t.Errorf("%s: %v", who, err)
		}
	}
	if _, err := place.Release(t.Context(), p.ID, 0); err != nil {
		t.Error(err)
	}
	for proc, want := range map[*proc][]string{
		x.coordinator: {`audit=true who="CN=ada,OU=place" role=place via=tls method=POST path=/v1/placements status=200 placement=` + p.ID,
			`msg=refused audit=true who="CN=bob,OU=read" role=read via=tls method=DELETE path=/v1/placements/` + p.ID + ` status=403`,
			`msg=refused audit=true who=unknown role=none via=tls`},
		x.agent: {`audit=true who="CN=coord1,OU=coordinator" role=admin via=tls method=PUT path=/v1/placements/` + p.ID + ` status=200`,
			`audit=true who="CN=coord1,OU=coordinator" role=admin via=tls method=DELETE`,
			`msg=refused audit=true who=unknown role=none via=tls`},
	} {
		b, err := os.ReadFile(proc.log)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range want {
			if !strings.Contains(string(b), line) {
				t.Errorf("no line with %s", line)
			}
		}
	}
}

// TestCertificatesAndCARotateUnderRequestsWithoutALoss goes through the three steps of
// `warmctl pki --help` while requests of every kind are under way.
func TestCertificatesAndCARotateUnderRequestsWithoutALoss(t *testing.T) {
	x := newTLSHost(t)
	ours := loadCerts(t, x.fleet.Files("place", "ada"))
	ctx, cancel := context.WithCancel(t.Context())
	var calls, placed atomic.Int64
	var loops sync.WaitGroup
	loop := func(what string, do func() error) {
		loops.Go(func() {
			for ctx.Err() == nil {
				if err := do(); err != nil && ctx.Err() == nil {
					t.Errorf("%s, after %d calls: %v", what, calls.Load(), err)
				}
				calls.Add(1)
			}
		})
	}
	for _, fresh := range []bool{true, false} {
		coord, agent := x.client(t, ours, fresh), x.atAgent(t, ours, fresh)
		loop(fmt.Sprintf("fleet, fresh=%t", fresh), func() error { _, err := coord.Fleet(ctx); return err })
		loop(fmt.Sprintf("workers over the coordinator, fresh=%t", fresh), func() error {
			resp, err := coord.Open(ctx, http.MethodGet, "/v1/workers", nil, nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if missed := resp.Header.Get("Warmd-Unreachable"); missed != "" {
				return fmt.Errorf("the coordinator did not reach %s", missed)
			}
			return nil
		})
		loop(fmt.Sprintf("node, fresh=%t", fresh), func() error { _, err := agent.Node(ctx); return err })
	}
	placer := x.client(t, ours, true)
	loop("place and release", func() error {
		p, err := placer.Place(ctx, placement.Request{Model: "a", Runtime: "ok", TimeoutSeconds: 30}, "ready", nil)
		if err != nil {
			return err
		}
		placed.Add(1)
		_, err = placer.Release(t.Context(), p.ID, 0)
		return err
	})
	stop := sync.OnceFunc(func() { cancel(); loops.Wait() })
	defer stop()

	oldCA := x.fleet.CA
	newCA, err := pki.NewAuthority(pki.UnitFleet, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// Two more clients that trust both: one has the new certificate before the servers
	// have, the other keeps the old one.
	client := func(ca *pki.Authority, name string) *access.Certificates {
		f := accesstest.New(t)
		f.CA = ca
		f.Trust(newCA, oldCA)
		return loadCerts(t, f.Files("read", name))
	}
	first, left := client(newCA, "early"), client(oldCA, "late")

	x.fleet.Trust(newCA, oldCA)
	x.both(t, "the new CA is trusted", func(tr *http.Transport, at string) error { return ask(tr, at) }, first)
	x.fleet.CA = newCA
	x.issue()
	x.fleet.Files("place", "ada")
	x.both(t, "the new certificates are shown", func(tr *http.Transport, at string) error { return signedBy(tr, at, newCA) }, first)
	// Files are looked at once a second at most: the old CA may only go when we show the new one.
	eventually(t, 10*time.Second, "our own certificate is the new one", func() error {
		if got := signer(ours.Leaf()); got != newCA.Cert.Subject.CommonName {
			return fmt.Errorf("signed by %s", got)
		}
		return nil
	})
	x.fleet.Trust(newCA)
	x.both(t, "the old CA is refused", func(tr *http.Transport, at string) error {
		err := ask(tr, at)
		if err == nil {
			return errors.New("it is still taken")
		}
		if strings.Contains(err.Error(), "unknown certificate authority") {
			return nil
		}
		return err
	}, left)
	before := placed.Load()
	eventually(t, 20*time.Second, "two more placements", func() error {
		if placed.Load() < before+2 {
			return fmt.Errorf("%d", placed.Load()-before)
		}
		return nil
	})
	stop()
	t.Logf("%d calls and %d placements while certificates and CA were replaced", calls.Load(), placed.Load())
}

// both waits until something is so at the coordinator and at the agent.
func (x *tlsHost) both(t *testing.T, what string, is func(tr *http.Transport, at string) error, c *access.Certificates) {
	t.Helper()
	for at, cfg := range map[string]*tls.Config{
		x.coordAt: c.Client("coord1", access.UnitCoordinator), x.agentAt: c.Client("host1", access.UnitAgent),
	} {
		eventually(t, 10*time.Second, what+" at "+at, func() error {
			tr := agentapi.NewTransport(cfg)
			defer tr.CloseIdleConnections()
			return is(tr, at)
		})
	}
}

// ask makes one call that needs role read.
func ask(tr *http.Transport, at string) error {
	resp, err := (&http.Client{Transport: tr}).Get("https://" + at + "/v1/capacity")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

// signedBy looks at the certificate that a server shows.
func signedBy(tr *http.Transport, at string, ca *pki.Authority) error {
	conn, err := tls.Dial("tcp", at, tr.TLSClientConfig)
	if err != nil {
		return err
	}
	defer conn.Close()
	if got := signer(conn.ConnectionState().PeerCertificates[0]); got != ca.Cert.Subject.CommonName {
		return fmt.Errorf("signed by %s", got)
	}
	return nil
}

func signer(c *x509.Certificate) string { return c.Issuer.CommonName }
