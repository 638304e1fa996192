package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"
)

// The grades of a finding.
const (
	fine   = "ok"
	warn   = "warning" // works, but worse than it could
	broken = "broken"  // something that warmd needs does not work
)

// finding is one thing that doctor looked at.
type finding struct {
	Check   string `json:"check"`
	Status  string `json:"status"`
	Message string `json:"message"`
	// Try says what to do about it.
	Try string `json:"try,omitempty"`
}

func doctorCommand() command {
	return command{
		name: "doctor", short: "check this host and say what to do",
		long: `Looks at the servers, the systemd units and their configuration, Python, the installed
runtimes, the GPU driver, memory, disk, groups, the clock and certificates. It changes
nothing and needs no rights; root sees the services' keys, too. The exit code is 1 when
something is broken; warnings leave it 0.`,
		examples: []example{
			{"warmctl doctor", ""},
			{"warmctl doctor -o json | jq '.findings[] | select(.status != \"ok\")'", "only what is wrong"},
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "runtimes", Usage: "`DIR`: folder of the runtimes; default: that of warmd runtime"},
			&cli.StringFlag{Name: "data", Usage: "`DIR`: folder whose disk is checked; default: that of the runtimes"},
		},
		run: runDoctor,
	}
}

func runDoctor(c *call) error {
	h := host{root: c.Host, getenv: c.Getenv, now: c.Now, me: thisAccount(), keptClock: keptClock}
	runtimes := c.flags.String("runtimes")
	if runtimes == "" {
		runtimes = h.runtimesDir()
	}
	data := cmp.Or(c.flags.String("data"), filepath.Dir(runtimes))
	findings := slices.Concat(
		checkServers(c), h.checkUnits(c.ctx), h.checkPython(c.ctx), h.checkRuntimes(runtimes), h.checkGPU(), h.checkMemory(), h.checkDisk(data), h.checkGroup(), h.checkClock(), h.checkCertificates(c.tlsFiles()))
	bad, doubtful := 0, 0
	for _, f := range findings {
		switch f.Status {
		case broken:
			bad++
		case warn:
			doubtful++
		}
	}
	if c.json {
		if err := c.printJSON(struct {
			OK       bool      `json:"ok"`
			Findings []finding `json:"findings"`
		}{bad == 0, findings}); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			fmt.Fprintf(c.Out, "%-8s %-12s %s\n", f.Status, f.Check, printable(f.Message))
			if f.Try != "" {
				fmt.Fprintf(c.Out, "%-8s %-12s   try: %s\n", "", "", printable(f.Try))
			}
		}
		fmt.Fprintf(c.Out, "\n%s checked: %d broken, %s\n", plural(len(findings), "thing"), bad, plural(doubtful, "warning"))
	}
	if bad > 0 {
		return &exitError{code: exitFailed} // the findings have said it
	}
	return nil
}
