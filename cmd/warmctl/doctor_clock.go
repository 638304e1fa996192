package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"warmd/agent/api/access/pki"
)

// The kernel's word for a clock that nobody synchronises (adjtimex(2), TIME_ERROR).
const timeError = 5

// keptClock asks the kernel whether something keeps the clock.
func keptClock() (bool, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return state != timeError, err
}

// checkClock compares the clock with what cannot be later than now, then asks whether
// something keeps it.
func (h host) checkClock() []finding {
	now := h.now()
	if now.Year() < 2025 {
		return []finding{{"clock", broken, fmt.Sprintf("it is the year %d here", now.Year()), "set the clock: timedatectl set-ntp true"}}
	}
	if ca, from := h.newestCA(); from.After(now) {
		return []finding{{"clock", broken, fmt.Sprintf("it says %s, but the CA in %s was made after that (valid from %s): certificates are refused here",
			clockText(now), ca, clockText(from)), "set the clock: timedatectl set-ntp true"}}
	}
	kept, err := h.keptClock()
	switch {
	case err != nil:
		return []finding{{"clock", fine, "set; the kernel does not say whether it is synchronised", ""}}
	case kept:
		return []finding{{"clock", fine, "synchronised", ""}}
	}
	if exists(h.path("/run/systemd/timesync")) && !exists(h.path("/run/systemd/timesync/synchronized")) {
		return []finding{{"clock", warn, "systemd-timesyncd runs and has not reached a time server yet: traces of several hosts do not line up", "timedatectl timesync-status names the server it asks"}}
	}
	return []finding{{"clock", warn, "nothing synchronises it: traces of several hosts do not line up", "timedatectl set-ntp true"}}
}

// newestCA is the latest time from which one of the fleet's CAs is valid.
func (h host) newestCA() (path string, from time.Time) {
	dir := h.path("/etc/warmd/tls")
	raw, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return "", from
	}
	certs, _ := pki.ParseCerts(raw)
	for _, c := range certs {
		if c.NotBefore.After(from) {
			from = c.NotBefore
		}
	}
	return filepath.Join(dir, "ca.crt"), from
}

func clockText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// checkSkew compares a server's clock, as its answer's Date header told it to the
// second, with ours. It was read between question and answer; only what lies outside
// of them is skew.
func checkSkew(who string, answer http.Header, asked, answered time.Time) []finding {
	at, err := http.ParseTime(answer.Get("Date"))
	skew := time.Duration(0)
	switch {
	case err != nil:
		return nil
	case at.Add(time.Second).Before(asked):
		skew = at.Add(time.Second).Sub(asked)
	case at.After(answered):
		skew = at.Sub(answered)
	}
	if max(skew, -skew) <= skewLimit {
		return nil
	}
	direction := "ahead of"
	if skew < 0 {
		direction, skew = "behind", -skew
	}
	grade, says := warn, "ages and traces mislead"
	if skew > pki.Backdate {
		grade, says = broken, "certificates made on one host are not valid yet on the other"
	}
	return []finding{{"clock", grade, fmt.Sprintf("the clock of the %s is %s %s this host's: %s", who, skew.Round(time.Second), direction, says), "find out which one is wrong (timedatectl on both), then timedatectl set-ntp true"}}
}
