package nspawn

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

// Promise 4 of issue 4: engines outlive everything in the control plane.

// rightWithin is how soon after a fault the capacity must be right again.
const rightWithin = 5 * time.Second

const (
	agentUnit       = "warmd-agent.service"
	coordinatorUnit = "warmd-coordinator.service"
)

// serving is an engine under a steady stream of completions.
type serving struct {
	*solo
	placed  placement.Placement
	before  []host.Process
	streams map[string]*load.Load
}

// serve places a model and asks it for completions from then on: over connections
// that are kept, and over new ones, which need the listening socket to be there.
func serve(t *testing.T, s *solo, name string) *serving {
	t.Helper()
	v := &serving{solo: s, placed: s.place(t, tiny(name)), streams: map[string]*load.Load{}}
	v.before = s.worker(t, v.placed)
	require.GreaterOrEqual(t, len(v.before), 2, "an engine and an API server: %v", v.before)
	for kind, tokens := range map[string]int{"kept": 24, "new": 6} {
		client := &http.Client{Transport: &http.Transport{DialContext: lab.Dial, DisableKeepAlives: kind == "new"}}
		v.streams[kind] = load.Repeat(t.Context(), 1, func(ctx context.Context) error {
			defer time.Sleep(100 * time.Millisecond) // the other core is for what is under test
			// On a busy machine a completion takes long, and has not failed.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			return load.Complete(ctx, client, v.placed.Endpoint, name, tokens)
		})
	}
	v.goesOn(t)
	return v
}

// goesOn waits until each stream had two more answers.
func (v *serving) goesOn(t testing.TB) {
	t.Helper()
	for kind, stream := range v.streams {
		seen := stream.OK()
		host.Until(t, 30*time.Second, "completions go on", func() error {
			if now := stream.OK(); now < seen+2 {
				return fmt.Errorf("%d more over %s connections; %s", now-seen, kind, stream)
			}
			return nil
		})
	}
}

// same says whether the worker's processes are those that it began with.
func (v *serving) same(t testing.TB) {
	t.Helper()
	assert.Equal(t, v.before, v.worker(t, v.placed), "other processes serve")
	ws, err := v.agent.Workers(t.Context())
	require.NoError(t, err)
	for _, w := range ws {
		if w.ID == v.placed.Worker {
			assert.Equal(t, v.placed.ID, w.Placement)
			assert.Equal(t, "serving", w.State)
			return
		}
	}
	t.Errorf("worker %s is not among %+v", v.placed.Worker, ws)
}

// stop ends the streams and returns how many completions failed, of how many.
func (v *serving) stop(t *testing.T) (failed, all int) {
	t.Helper()
	for kind, stream := range v.streams {
		got := stream.Stop()
		t.Logf("completions over %s connections: %s", kind, got)
		assert.Zero(t, got.Failed(), "%s connections: %s", kind, got)
		failed += got.Failed()
		all += got.Failed() + got.OK()
	}
	return failed, all
}

func TestRealVLLMOutlivesTheControlPlane(t *testing.T) {
	v := serve(t, theSolo(t), "outlive")
	for _, fault := range []struct {
		name string
		do   func(*testing.T, *serving)
	}{
		{"restart of the agent", func(t *testing.T, v *serving) { v.Run(t, "systemctl restart "+agentUnit) }},
		{"kill -9 of the agent", killAgentOften},
		{"kill of the agent by the watchdog", killByWatchdog},
		{"stop of the agent and activation", stopAndActivate},
		{"upgrade of the package", upgrade},
		{"daemon-reexec", func(t *testing.T, v *serving) { v.Run(t, "systemctl daemon-reexec") }},
		{"kill -9 of the zygote", killZygote},
		{"coordinator and etcd down for a minute", coordinatorAndEtcdDown},
	} {
		t.Run(fault.name, func(t *testing.T) {
			fault.do(t, v)
			took := host.Until(t, rightWithin, "capacity is right", func() error { return v.right(t, 1) })
			figure("right_again_seconds_after_"+strings.ReplaceAll(fault.name, " ", "_"), seconds(took))
			v.same(t)
			v.goesOn(t)
		})
	}
	failed, all := v.stop(t)
	figure("completions_failed", fmt.Sprintf("%d of %d", failed, all))
	v.release(t, v.placed.ID)
	host.Until(t, 30*time.Second, "the released worker is gone", func() error {
		if left := v.worker(t, v.placed); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	v.untilWhole(t)
}

// killAgentOften kills the agent a hundred times at random moments: every other time
// while it starts and adopts.
func killAgentOften(t *testing.T, v *serving) {
	const kills = 100
	var took []time.Duration
	for n := range kills {
		var agent *host.Process
		host.Until(t, 30*time.Second, "the agent runs", func() error {
			if agent = v.unit(t, agentUnit); agent == nil {
				return errors.New("it does not")
			}
			return nil
		})
		require.NoError(t, syscall.Kill(agent.Pid, syscall.SIGKILL))
		if n%2 == 0 {
			time.Sleep(time.Duration(rand.IntN(800)) * time.Millisecond)
			continue
		}
		took = append(took, host.Until(t, rightWithin, "the agent has its workers again", func() error { return v.rightForAgent(t, 1) }))
	}
	slices.Sort(took)
	figure("agent_kills", kills)
	figure("readoption_seconds_p50", seconds(took[len(took)/2]))
	figure("readoption_seconds_max", seconds(took[len(took)-1]))
	v.WaitUnit(t, agentUnit, "active", 30*time.Second)
}

// another waits until another process is the agent.
func (v *serving) another(t *testing.T, than *host.Process, within time.Duration) {
	t.Helper()
	host.Until(t, within, "another agent", func() error {
		if now := v.unit(t, agentUnit); now == nil || now.Pid == than.Pid {
			return errors.New("not yet")
		}
		return nil
	})
}

// killByWatchdog stops the agent's process, which then pets nothing.
func killByWatchdog(t *testing.T, v *serving) {
	const dropIn = "/run/systemd/system/" + agentUnit + ".d/watchdog.conf"
	v.Write(t, dropIn, "[Service]\nWatchdogSec=3s\n", 0o644)
	v.Run(t, "systemctl daemon-reload; systemctl restart "+agentUnit)
	agent := v.unit(t, agentUnit)
	require.NotNil(t, agent)
	require.NoError(t, syscall.Kill(agent.Pid, syscall.SIGSTOP))
	begin := time.Now()
	v.another(t, agent, time.Minute)
	figure("watchdog_seconds", seconds(time.Since(begin)))
	assert.Contains(t, v.Run(t, "journalctl -q -o cat -u "+agentUnit+" -g 'Watchdog timeout'"), "Watchdog timeout")
	host.Until(t, rightWithin, "capacity is right after the watchdog", func() error { return v.rightForAgent(t, 1) })
	v.Run(t, "rm "+dropIn+"; systemctl daemon-reload; systemctl restart "+agentUnit)
}

// stopAndActivate leaves the host without an agent until somebody asks the socket.
func stopAndActivate(t *testing.T, v *serving) {
	v.Run(t, "systemctl stop "+agentUnit)
	assert.Nil(t, v.unit(t, agentUnit))
	v.goesOn(t)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := v.agent.Node(ctx)
	require.NoError(t, err, "a request to the socket starts the agent")
	figure("activation_seconds", seconds(time.Since(begin)))
}

// killZygote kills the process that forks workers. Those that it forked live on, the one
// that waits is as good as ever, and the next generation forks those that come after it.
func killZygote(t *testing.T, v *serving) {
	unit := v.before[0].Cgroup[:strings.LastIndex(v.before[0].Cgroup, "/")]
	zygotes := v.Processes(t, func(p host.Process) bool { return p.Cgroup == unit+"/zygote" })
	require.Len(t, zygotes, 1)
	require.NoError(t, syscall.Kill(zygotes[0].Pid, syscall.SIGKILL))
	begin := time.Now()
	host.Until(t, rightWithin, "capacity is right without a zygote", func() error { return v.right(t, 1) })
	p := v.place(t, tiny("orphan"))
	assert.Equal(t, placement.TierWarm, p.Tier)
	assert.True(t, v.of(t, unit, p.Worker), "the worker that the dead zygote had parked")
	host.Until(t, imports, "the next generation has parked a worker", func() error {
		st, err := v.node(t)
		if err != nil {
			return err
		}
		for _, w := range st.Workers {
			if w.State == "warm" && w.EnginePID != 0 && !v.of(t, unit, w.ID) {
				return nil
			}
		}
		return fmt.Errorf("zygote %s, workers %+v", zygote(st.Capacity), st.Workers)
	})
	figure("next_generation_seconds", seconds(time.Since(begin)))
	v.release(t, p.ID)
	assert.Equal(t, "active", v.Run(t, "systemctl show -P ActiveState "+unit[strings.LastIndex(unit, "/")+1:]), "the old generation's unit lives as long as its engine")
}

// of says whether a worker belongs to a unit.
func (v *serving) of(t testing.TB, unit, worker string) bool {
	return len(v.Processes(t, func(p host.Process) bool { return p.Cgroup == unit+"/worker-"+worker })) > 0
}

// coordinatorAndEtcdDown leaves the host alone for a minute.
func coordinatorAndEtcdDown(t *testing.T, v *serving) {
	v.Run(t, "systemctl stop warmd-coordinator.socket; systemctl kill -s KILL "+coordinatorUnit+" "+soloEtcd+"; systemctl stop "+coordinatorUnit+" "+soloEtcd)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		require.NoError(t, v.rightForAgent(t, 1))
	}
	v.Run(t, "systemctl start "+soloEtcd+"; systemctl start warmd-coordinator.socket "+coordinatorUnit)
}

// upgrade installs the same sources as the next version, as an operator does.
func upgrade(t *testing.T, v *serving) {
	before := v.unit(t, agentUnit)
	require.NotNil(t, before)
	v.Install(t, nextRelease(t).deb...)
	v.WaitUnit(t, agentUnit, "active", 30*time.Second)
	v.another(t, before, 10*time.Second)
	st, err := v.node(t)
	require.NoError(t, err)
	assert.Equal(t, nextRelease(t).version, st.Capacity.Version)
}
