package nspawn

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"warmd/packaging/nspawn/host"
	"warmd/packaging/nspawn/load"
	"warmd/placement"
)

// What ends an engine, and what else ends with it.

// inSlice is everything that runs models on a host.
func (s *solo) inSlice(t testing.TB) []host.Process {
	t.Helper()
	return s.Processes(t, func(p host.Process) bool { return strings.HasPrefix(p.Cgroup, "/warmd.slice/") })
}

// left are those processes that are still there.
func (s *solo) left(t testing.TB, of []host.Process) (left []host.Process) {
	t.Helper()
	return s.Processes(t, func(p host.Process) bool {
		for _, o := range of {
			if o.Pid == p.Pid && o.Start == p.Start {
				return true
			}
		}
		return false
	})
}

// untilFailed waits until the coordinator knows that a placement has ended, and why.
func (s *solo) untilFailed(t testing.TB, id string, within time.Duration) placement.Placement {
	t.Helper()
	var p placement.Placement
	host.Until(t, within, id+" is known to have failed", func() (err error) {
		if p, err = s.coordinator.Placement(t.Context(), id); err == nil && p.State != placement.Failed {
			err = fmt.Errorf("it is %s", p.State)
		}
		return err
	})
	return p
}

func TestStopOfTheSliceEndsEveryEngineAndNothingOfTheControlPlane(t *testing.T) {
	s := theSolo(t)
	p := s.place(t, tiny("ends"))
	engines, agent, coordinator := s.inSlice(t), s.unit(t, agentUnit), s.unit(t, coordinatorUnit)
	require.GreaterOrEqual(t, len(engines), 6, "two zygotes and two pairs: %v", engines)
	begin := time.Now()
	s.Run(t, "systemctl stop warmd.slice")
	assert.Empty(t, s.left(t, engines), "outlived their slice")
	figure("stop_slice_seconds", seconds(time.Since(begin)))
	assert.Equal(t, agent, s.unit(t, agentUnit))
	assert.Equal(t, coordinator, s.unit(t, coordinatorUnit))
	t.Log(s.untilFailed(t, p.ID, 10*time.Second).Reason)

	// The agent has begun the next generation, whose imports take their time.
	t.Run("an agent is ready once its zygote is up, and answers before", s.readyWithItsZygote)
}

// lonerRuntime leaves a process behind that has a session of its own and no parent.
const lonerRuntime = "loner"

func lonerCommand(addr string) string {
	return `sh -c 'setsid -f sleep 31337; exec python3 "$@"' sh ` + enginePath + ` --host ` + addr + ` --port {port} --model {model} --name {name}`
}

func TestReleaseEndsGrandchildrenWithASessionOfTheirOwn(t *testing.T) {
	s := theSolo(t)
	p := s.place(t, placement.Request{Model: "tiny", Name: "loner", Runtime: lonerRuntime, TimeoutSeconds: 60})
	find := func() []host.Process {
		return s.Processes(t, func(x host.Process) bool { return strings.Join(x.Args, " ") == "sleep 31337" })
	}
	loners := find()
	require.Len(t, loners, 1)
	assert.Contains(t, loners[0].Cgroup, "/worker-"+p.Worker)
	engine := s.worker(t, p)
	stat := strings.Fields(s.Run(t, "ps -C sleep -o pid=,sid=,ppid="))
	require.Len(t, stat, 3)
	assert.Equal(t, stat[0], stat[1], "it leads its session")
	require.GreaterOrEqual(t, len(engine), 2)
	s.release(t, p.ID)
	assert.Empty(t, find(), "it outlived the release")
	assert.Empty(t, s.left(t, engine))
	s.untilWhole(t)
}

func TestMemoryKillerOfOneEngineSparesTheOther(t *testing.T) {
	s := theSolo(t)
	victim := s.place(t, tiny("victim"))
	other := serve(t, s, "other")
	all := s.worker(t, victim)
	engine := slices.MaxFunc(all, func(a, b host.Process) int { return cmp.Compare(a.RSS(), b.RSS()) })
	unit := strings.Split(engine.Cgroup, "/")[2]
	s.Starve(t, engine)
	client := &http.Client{Transport: &http.Transport{DialContext: lab.Dial}}
	host.Until(t, 30*time.Second, "the engine needed memory", func() error {
		if left := s.left(t, []host.Process{engine}); len(left) == 0 {
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return fmt.Errorf("it lives: %w", load.Complete(ctx, client, victim.Endpoint, "victim", 200))
	})
	failed := s.untilFailed(t, victim.ID, 10*time.Second)
	t.Log(failed.Reason)
	assert.Contains(t, failed.Reason, "the engine died")
	host.Until(t, 30*time.Second, "all of the victim is gone", func() error {
		if left := s.left(t, all); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	assert.Equal(t, "active", s.Run(t, "systemctl show -P ActiveState "+unit))
	host.Until(t, rightWithin, "capacity is right", func() error { return s.right(t, 1) })
	other.goesOn(t)
	other.same(t)
	count, of := other.stop(t)
	figure("completions_failed_beside_the_memory_killer", fmt.Sprintf("%d of %d", count, of))
	s.release(t, other.placed.ID)
	s.untilWhole(t)
}
