package nspawn

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

// stopTime is how long a process is stopped: much longer than any lease.
const stopTime = 30 * time.Second

// stoppedProcesses stops one process after the other, each for 30 s, with one lease
// between: the elected coordinator, another one, a member of etcd and the leading one.
func stoppedProcesses(t *testing.T, f *fleet) {
	// Without its watchdog a stopped coordinator goes on where it was: the zombie that
	// fencing is for. With it systemd would end it as soon as it wakes.
	f.each(t, func(n *node) {
		n.dropIn(t, coordinatorUnit, "[Service]\nWatchdogSec=0")
		n.Run(t, "systemctl restart "+coordinatorUnit)
	})
	defer f.each(t, func(n *node) { n.Run(t, "systemctl restart "+coordinatorUnit) })
	d, h, stream := newDice(t), f.watch(t), f.stream(t, f.id("st"))
	var told []*load.Told
	var took []time.Duration
	var zombies []*node

	elected := f.leader(t)
	pid := map[*node]string{}
	for i, victim := range []*node{elected, f.after(elected)}[:f.rounds(2, 1)] {
		pid[victim] = victim.Run(t, "systemctl show -P MainPID "+coordinatorUnit)
		signal := victim.signaller(t, coordinatorUnit)
		g := f.aim(t.Context(), victim, slowRequest(fmt.Sprintf("%s-%d", f.id("st-target"), i)), moment{placement.EventAccepted, d.some(time.Second)})
		<-g.come
		fault := signal(syscall.SIGSTOP)
		zombies = append(zombies, victim)
		wake := time.AfterFunc(stopTime, func() { signal(syscall.SIGCONT) })
		defer wake.Stop()
		took = append(took, f.untilTakenOver(t, h, victim, fault)...)
		told = append(told, <-g.told)
	}
	leading := f.etcdLeader(t)
	for _, victim := range []*node{f.after(leading), leading}[f.rounds(0, 1):] {
		signal := victim.signaller(t, etcdUnit)
		signal(syscall.SIGSTOP)
		time.Sleep(stopTime)
		signal(syscall.SIGCONT)
		f.each(t, func(n *node) { f.untilCoordinates(t, n) })
	}
	for _, n := range zombies {
		assert.Equal(t, pid[n], n.Run(t, "systemctl show -P MainPID "+coordinatorUnit), "the stopped coordinator goes on")
	}
	f.prove(t, f.id("st"), append(stream.Stop(), told...))
	f.figure("writes_of_zombies", h.zombieWrites())
	require.Zero(t, h.zombieWrites(), "a coordinator wrote a record that had been taken from it")
	f.figures("takeover_seconds_after_stop", took)
	f.assertBelow(t, takeoverWithin, took, "takeover")
}

// slowRequest loads long enough to be caught in the middle.
func slowRequest(id string) placement.Request {
	r := request(id)
	r.Runtime = slowRuntime
	return r
}
