package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// joiner looks for the fleet, looks again until the view is stable, then heals.
//
// A push/pull join is a full exchange of the member list, and memberlist gives up
// on a dead node after 30 s for ever: a partition longer than that heals only if
// somebody calls across. Each member of a small fleet calls one missing address every
// 3 s. In a large one it does so with probability missing/alive: the small side of a
// split nearly always, one dead node in a fleet of thousands nearly never.
func (m *Member) joiner(ctx context.Context) {
	wait := time.Second
	for tries := 1; len(m.cfg.Join) > 0; tries++ {
		n, err := m.call(ctx, m.seeds(ctx))
		// Others may have called us, while every seed is down: healing goes on with those.
		if members := m.list.NumMembers(); members >= 2 && (n > 0 || tries == 3) {
			m.log.Info("joined fleet", "members", members)
			break
		}
		if tries == 1 {
			m.log.Warn("join fleet: nobody answers yet, trying on", "join", m.cfg.Join, "err", err)
		}
		if !sleep(ctx, jitter(wait)) {
			return
		}
		wait = min(2*wait, repeat)
	}
	for range 3 { // simultaneous joins can leave single entries out
		before := m.list.NumMembers()
		if len(m.cfg.Join) == 0 || !sleep(ctx, jitter(5*time.Second)) {
			break
		}
		if _, _ = m.call(ctx, m.seeds(ctx)); m.list.NumMembers() == before {
			break
		}
	}
	for sleep(ctx, jitter(m.paced(healEvery, fleetHeals))) {
		m.heal(ctx)
	}
}

// heal calls one missing address, sometimes.
func (m *Member) heal(ctx context.Context) {
	missing, alive := m.missing()
	for _, s := range m.seeds(ctx) {
		if !m.has(s) && s != m.Addr() {
			missing = append(missing, s)
		}
	}
	if len(missing) == 0 || rand.N(alive) >= max(len(missing), smallFleet) {
		return
	}
	one := missing[rand.N(len(missing))]
	if _, err := m.call(ctx, []string{one}); err != nil {
		m.log.Debug("heal fleet", "addr", one, "err", err)
	}
}

// call joins by addresses, at most three, so that a long list costs no more. It
// counts who answered.
func (m *Member) call(ctx context.Context, addrs []string) (answered int, first error) {
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	called := 0
	for _, a := range addrs {
		if ctx.Err() != nil || called == 3 {
			break
		}
		if a == m.Addr() {
			continue
		}
		called++
		if _, err := m.list.Join([]string{a}); err == nil {
			answered++
		} else if first == nil {
			first = fmt.Errorf("call %s: %s", a, firstLine(err))
		}
	}
	return answered, first
}

// seeds resolves the configured addresses. Ours, not memberlist's: that one knows
// no context and asks DNS for ANY over TCP first.
func (m *Member) seeds(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, tcpTimeout)
	defer cancel()
	var out []string
	for _, s := range m.cfg.Join {
		host, port, err := splitSeed(s)
		if err != nil {
			continue // Validate has refused it
		}
		ips, err := lookup(ctx, host)
		if err != nil {
			m.log.Debug("resolve seed", "seed", s, "err", err)
			continue
		}
		for _, ip := range ips {
			out = append(out, net.JoinHostPort(ip.Unmap().String(), strconv.Itoa(port)))
		}
	}
	return out
}

func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// splitSeed reads host:port, host, or a bare IPv6 address.
func splitSeed(s string) (host string, port int, err error) {
	if _, err := netip.ParseAddr(s); err == nil || !strings.Contains(s, ":") {
		if s == "" {
			return "", 0, fmt.Errorf("is empty")
		}
		return s, DefaultPort, nil
	}
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 || host == "" {
		return "", 0, fmt.Errorf("host or port is missing")
	}
	return host, int(n), nil
}

// firstLine flattens memberlist's lists of errors.
func firstLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
