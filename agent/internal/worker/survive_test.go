package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAgentThatGoesAwayChangesNothingAndTheNextAdoptsThem(t *testing.T) {
	h := fakeHost(t)
	first, stop := h.agent()
	parked, serving := h.fork(first, "parked"), h.fork(first, "serving")
	addr := serve(t, serving, "p1")
	before := append(procsOf(parked), procsOf(serving)...)
	zygote := first.Status()
	records := []Record{parked.Record(), serving.Record()}
	stop()
	requireAlive(t, before...)
	require.Equal(t, "hello from p1 [--model=m]\n", get(t, addr), "it serves with no agent")
	for e := range serving.Events() {
		require.NotEqual(t, EventDead, e.Kind, "an agent that goes away is no death")
	}
	require.ErrorIs(t, serving.Stop(context.Background(), 0), ErrNotRunning)

	second, _ := h.agent()
	found, err := second.Found(soon(t))
	require.NoError(t, err)
	require.Len(t, found, 2)
	for i, rec := range records {
		require.Equal(t, rec.procs(), found[i].procs())
		w, err := second.Adopt(soon(t), rec)
		require.NoError(t, err)
		require.Equal(t, rec.State, w.Info().State)
		require.Equal(t, rec.Placement, w.Info().Placement)
		require.ElementsMatch(t, procsOf(w), before[2*i:2*i+2])
		if i == 0 {
			parked = w
		} else {
			serving = w
		}
	}
	requireAlive(t, before...)
	s := waitZygote(t, second, isUp)
	require.Equal(t, zygote.PID, s.PID, "the living zygote is used, none is started")

	serve(t, parked, "p2")
	require.NoError(t, before[2].Signal(syscall.SIGKILL))
	require.Contains(t, waitDead(t, serving).Message, "killed by signal 9", "an adopted worker's death is explained, too")
}

func TestWorkersOfAKilledAgentAreFoundWithoutAnyRecord(t *testing.T) {
	h := fakeHost(t)
	first, stop := h.agent()
	w := h.fork(first, "w1")
	want := w.Record()
	stop()
	require.NoError(t, os.Remove(w.dir()+"/"+workerFile))
	zygote := Proc{}
	t.Run("the zygote lists them", func(t *testing.T) {
		second, stop := h.agent()
		defer stop()
		found, err := second.Found(soon(t))
		require.NoError(t, err)
		require.Len(t, found, 1)
		require.Equal(t, want.procs(), found[0].procs())
		zygote, _ = FindProc(waitZygote(t, second, isUp).PID)
	})
	t.Run("their own sockets answer when the zygote is dead", func(t *testing.T) {
		require.NoError(t, zygote.Signal(syscall.SIGKILL))
		require.True(t, awaitAll(context.Background(), []Proc{zygote}, 5*time.Second))
		_ = os.Remove(w.dir() + "/" + workerFile)
		third, _ := h.agent()
		found, err := third.Found(soon(t))
		require.NoError(t, err)
		require.Len(t, found, 1)
		require.Equal(t, want.procs(), found[0].procs())
		a, err := third.Adopt(soon(t), found[0])
		require.NoError(t, err)
		require.Equal(t, Warm, a.Info().State)
	})
}

// TestWorkersOfTheNextVersionsAgentAreAdopted: an agent that is downgraded finds files
// with fields that it does not know, and goes on with the workers and their zygote.
func TestWorkersOfTheNextVersionsAgentAreAdopted(t *testing.T) {
	h := fakeHost(t)
	first, stop := h.agent()
	w := h.fork(first, "w1")
	zygote := waitZygote(t, first, isUp).PID
	stop()
	for _, file := range []string{w.dir() + "/" + workerFile, filepath.Dir(w.dir()) + "/" + zygoteFile} {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		later := strings.ReplaceAll(string(b), "{", `{"later":{"x":[1]},`)
		require.True(t, json.Valid([]byte(later)), later)
		require.NoError(t, os.WriteFile(file, []byte(later), 0o640))
	}
	second, _ := h.agent()
	found, err := second.Found(soon(t))
	require.NoError(t, err)
	require.Len(t, found, 1)
	a, err := second.Adopt(soon(t), found[0])
	require.NoError(t, err)
	require.Equal(t, Warm, a.Info().State)
	require.Equal(t, zygote, waitZygote(t, second, isUp).PID, "no other zygote was started")
}

func TestPidOfAnotherProcessIsNeverAdoptedOrKilled(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "victim")
	rec := w.Record()
	rec.ID = "imposter"
	rec.Engine.Start-- // the same pid in an earlier life
	rec.API.Start--
	_, err := r.Adopt(soon(t), rec)
	require.ErrorIs(t, err, ErrLost)
	require.ErrorIs(t, rec.Engine.Signal(syscall.SIGKILL), ErrGone)
	require.ErrorIs(t, r.signal(context.Background(), 1, rec.Engine, syscall.SIGKILL), ErrGone)
	rebooted := w.Record()
	rebooted.Boot = "another-life-of-the-host"
	require.Empty(t, rebooted.living())
	requireAlive(t, procsOf(w)...)
}

func TestAdoptingAPairWithADeadHalfEndsTheRest(t *testing.T) {
	h := fakeHost(t)
	r, stop := h.agent()
	w := h.fork(r, "w1")
	rec := w.Record()
	// Without zygote and agent nobody ends the other half of a parked pair.
	zygote, _ := FindProc(r.Status().PID)
	stop()
	require.NoError(t, zygote.Signal(syscall.SIGKILL))
	require.NoError(t, rec.API.Signal(syscall.SIGKILL))
	require.True(t, awaitAll(context.Background(), []Proc{zygote, rec.API}, 5*time.Second))
	requireAlive(t, rec.Engine)
	next, _ := h.agent()
	_, err := next.Adopt(soon(t), rec)
	require.ErrorIs(t, err, ErrLost)
	require.EqualError(t, err, "adopt worker w1: worker is lost: 1 of its 2 processes run")
	requireGone(t, rec.Engine)
}

func TestKilledZygoteLeavesItsWorkersAndTheNextGenerationCanEndThem(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	parked, serving := h.fork(r, "parked"), h.fork(r, "serving")
	addr := serve(t, serving, "p1")
	ps := append(procsOf(parked), procsOf(serving)...)
	zygote, _ := FindProc(r.Status().PID)
	require.NoError(t, zygote.Signal(syscall.SIGKILL))
	began := time.Now()
	s := waitZygote(t, r, func(s RuntimeStatus) bool { return s.Generation == 2 && isUp(s) })
	t.Log("next generation up after", time.Since(began))
	require.Empty(t, s.Problem)
	requireAlive(t, ps...)
	require.Equal(t, "hello from p1 [--model=m]\n", get(t, addr))
	h.fork(r, "new")
	// Only its zygote may kill a worker when that belongs to another user: by pid + start.
	require.NoError(t, r.conns(1)[0].kill(soon(t), parked.Record().Engine, syscall.SIGKILL))
	require.Equal(t, "engine ended, its exit code is not known (its zygote is gone)", waitDead(t, parked).Message)
	require.NoError(t, serving.Stop(soon(t), 0))
	requireGone(t, ps...)
}

func TestOldGenerationEndsWithItsLastWorker(t *testing.T) {
	h := fakeHost(t)
	r, stop := h.agent()
	rec := h.fork(r, "old").Record()
	old, _ := FindProc(r.Status().PID)
	stop()
	h.manifest.Env["UPGRADED"] = "1" // started from something else than today's manifest
	next, _ := h.agent()
	waitZygote(t, next, func(s RuntimeStatus) bool { return s.Generation == 2 && isUp(s) })
	w, err := next.Adopt(soon(t), rec)
	require.NoError(t, err)
	requireAlive(t, old)
	require.NoError(t, w.Stop(soon(t), 0))
	fd, err := old.open()
	if err == nil {
		defer fd.close()
		require.NoError(t, fd.wait(soon(t)), "the old zygote ends")
	}
	require.NoError(t, next.Shutdown(soon(t)))
}

func TestAChildThatEndsWhileItsOldZygoteAnswersIsNotMissed(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	waitZygote(t, r, isUp)
	g := &generation{rt: r, n: 9, holds: 1}
	var changed <-chan struct{}
	s := &fakeServer{}
	s.handle = func(string, []byte, []*os.File) (any, *RemoteError) {
		last := child{Proc: Proc{1 << 30, 1}, Worker: "last", Role: roleEngine}
		g.onEvent("exit", []byte(`{"ev": "exit", "worker": "last", "role": "engine"}`)) // before we have read the answer
		changed = r.waiter()
		return map[string]any{"children": []child{last}}, nil
	}
	ln := s.listen(filepath.Join(t.TempDir(), "old.sock"))
	defer ln.Close()
	go s.serve(ln)
	require.NoError(t, withZygote(t.Context(), ln.Addr().String(), func(c *conn) error { r.end(g, c, 0); return nil }))
	require.Zero(t, g.holds)
	select {
	case <-changed: // it is looked at again
	default:
		t.Fatal("nobody would look at the old zygote again")
	}
}

func TestZygoteThatNeverStartsSaysWhyAndColdStartsStillWork(t *testing.T) {
	h := fakeHost(t, "FAKE_ZYGOTE_DIES=ImportError: no module named vllm")
	r, _ := h.agent()
	s := waitZygote(t, r, func(s RuntimeStatus) bool { return s.Zygote == ZygoteDown })
	require.Contains(t, s.Problem, "zygote exited with code 1: ImportError: no module named vllm (log: ")
	_, err := r.Fork(soon(t), ForkSpec{ID: "w1"})
	require.ErrorIs(t, err, ErrNoZygote)
	require.ErrorContains(t, err, "no module named vllm")

	w, err := r.Spawn(soon(t), SpawnSpec{ID: "cold", Argv: []string{"/bin/sleep", "1000"}})
	require.NoError(t, err)
	require.Equal(t, Loading, w.Info().State)
	require.NoError(t, w.Stop(soon(t), 0))
	requireGone(t, procsOf(w)...)
}

func TestMissingPythonIsAProblemNotACrash(t *testing.T) {
	h := fakeHost(t)
	h.manifest.Python = "/nonexistent/python"
	r, _ := h.agent()
	s := waitZygote(t, r, func(s RuntimeStatus) bool { return s.Zygote == ZygoteDown })
	require.Contains(t, s.Problem, "start zygote fake.1: fork/exec /nonexistent/python: no such file or directory")
}

// A runtime whose folder cannot be made delays no agent, and says why it has no zygote.
func TestRuntimeThatCannotBePreparedIsAProblemAndNobodyWaitsForIt(t *testing.T) {
	h := fakeHost(t)
	require.NoError(t, os.WriteFile(h.dir+"/run", nil, 0o600))
	r := h.new()
	require.ErrorContains(t, r.Run(t.Context()), "prepare runtime fake: mkdir")
	found, err := r.Found(soon(t))
	require.NoError(t, err)
	require.Empty(t, found)
	s := r.Status()
	require.Equal(t, ZygoteDown, s.Zygote)
	require.Contains(t, s.Problem, "prepare runtime fake: mkdir")
	require.NoError(t, os.Remove(h.dir+"/run"))
}

func TestImportingZygoteDelaysNeitherFoundNorTheAgent(t *testing.T) {
	h := fakeHost(t, "FAKE_ZYGOTE_IMPORT=3s")
	first, stop := h.agent()
	waitZygote(t, first, func(s RuntimeStatus) bool { return s.PID > 0 })
	pid := first.Status().PID
	stop()
	second, _ := h.agent()
	found, err := second.Found(within(t, 2*time.Second))
	require.NoError(t, err)
	require.Empty(t, found)
	require.Equal(t, ZygoteStarting, second.Status().Zygote)
	w := h.fork(second, "w1") // waits for it
	require.Equal(t, pid, second.Status().PID)
	require.Equal(t, 1, w.Info().Generation)
}

func TestHungHalfIsAdoptedByItsRecordAndCanBeKilled(t *testing.T) {
	h := fakeHost(t)
	first, stop := h.agent()
	w := h.fork(first, "w1")
	rec := w.Record()
	stop()
	require.NoError(t, rec.Engine.Signal(syscall.SIGSTOP))
	second, _ := h.agent()
	began := time.Now()
	a, err := second.Adopt(soon(t), rec)
	require.NoError(t, err)
	require.Less(t, time.Since(began), 15*adoptTime)
	require.NoError(t, a.Stop(soon(t), 0))
	requireGone(t, procsOf(a)...)
}

func TestShutdownProvesEverythingGone(t *testing.T) {
	for _, running := range []bool{true, false} {
		h := fakeHost(t)
		r, stop := h.agent()
		w := h.fork(r, "w1", "FAKE_GRANDCHILD=1")
		serve(t, w, "p1")
		zygote, _ := FindProc(r.Status().PID)
		var all []Proc
		for _, p := range procsOf(w) {
			all = append(all, sessionMembers(p)...)
		}
		if !running {
			stop()
		}
		require.NoError(t, r.Shutdown(within(t, 20*time.Second)))
		requireGone(t, append(all, zygote)...)
		require.Empty(t, r.generations())
		if running {
			require.NotEmpty(t, waitDead(t, w).Message)
			_, err := r.Fork(soon(t), ForkSpec{ID: "late"})
			require.ErrorIs(t, err, ErrNotRunning)
		}
	}
}

func TestHungZygoteDelaysNoDeathAndNoStop(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	dies, stops := h.fork(r, "dies", "FAKE_GRANDCHILD=1"), h.fork(r, "stops", "FAKE_GRANDCHILD=1")
	serve(t, dies, "p1")
	zygote, _ := FindProc(r.Status().PID)
	stopProcess(t, zygote)
	require.NoError(t, dies.Record().API.Signal(syscall.SIGKILL))
	e := next(t, dies, 20*time.Second, func(e Event) bool { return e.Kind == EventError })
	// The engine ends itself as soon as its peer is gone. Only the zygote could say
	// which of the two ended first, and it hangs.
	require.Regexp(t, "(API server|engine) ended, its exit code is not known", e.Message)
	waitDead(t, dies)
	require.NoError(t, stops.Stop(soon(t), 0))
	requireGone(t, append(procsOf(dies), procsOf(stops)...)...)
}

func TestGenerationThatCannotStartLeavesNoFolderAndKeepsItsLog(t *testing.T) {
	h := fakeHost(t, "FAKE_ZYGOTE_DIES=ImportError: no module named vllm")
	r, _ := h.agent()
	waitZygote(t, r, func(s RuntimeStatus) bool { return s.Zygote == ZygoteDown })
	first := r.unit(1, "").Log
	require.FileExists(t, first)
	waitZygote(t, r, func(s RuntimeStatus) bool { return s.Zygote == ZygoteDown && r.freeNumber() > 2 })
	require.NoDirExists(t, r.genDir(1))
	require.Contains(t, tail(first, 1), "no module named vllm", "a later generation writes elsewhere")
}

func TestOldLogsGoButNotThoseOfTheLiving(t *testing.T) {
	h := fakeHost(t)
	r, _ := h.agent()
	w := h.fork(r, "living")
	old := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(w.Info().LogPath, old.Add(-time.Hour), old.Add(-time.Hour)))
	for i := range keptLogs + 5 {
		path := r.logPath("gone-" + strconv.Itoa(1000+i))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Chtimes(path, old, old.Add(time.Duration(i)*time.Second)))
	}
	r.pruneLogs()
	require.FileExists(t, w.Info().LogPath)
	require.NoFileExists(t, r.logPath("gone-1004"))
	require.FileExists(t, r.logPath("gone-1005"))
}

func TestZygoteThatHangsIsReplacedAndItsWorkersLiveOn(t *testing.T) {
	h := fakeHost(t)
	r := h.new()
	r.patience.pingEvery, r.patience.ping = 20*time.Millisecond, 500*time.Millisecond
	h.run(r)
	w := h.fork(r, "w1")
	zygote, _ := FindProc(r.Status().PID)
	require.NoError(t, zygote.Signal(syscall.SIGSTOP))
	waitZygote(t, r, func(s RuntimeStatus) bool { return s.Generation == 2 && isUp(s) })
	requireGone(t, zygote)
	requireAlive(t, procsOf(w)...)
	require.NoError(t, w.Stop(soon(t), 0))
}

func TestImportsThatNeverEndAreAProblemInWords(t *testing.T) {
	h := fakeHost(t, "FAKE_ZYGOTE_IMPORT=1h")
	r := h.new()
	r.patience.imports = 300 * time.Millisecond
	h.run(r)
	s := waitZygote(t, r, func(s RuntimeStatus) bool { return s.Zygote == ZygoteDown })
	require.Contains(t, s.Problem, "zygote did not answer for 300ms and was killed")
}

func TestEveryChangeOfStatusIsTold(t *testing.T) {
	h := fakeHost(t)
	told := make(chan struct{}, 1)
	r := h.new()
	r.cfg.OnChange = func() {
		select {
		case told <- struct{}{}:
		default:
		}
	}
	require.Equal(t, ZygoteStarting, r.Status().Zygote)
	stop := h.run(r)
	deadline := time.After(20 * time.Second)
	for !isUp(r.Status()) {
		select {
		case <-told:
		case <-deadline:
			require.Fail(t, "nobody told")
		}
	}
	stop()
	require.Equal(t, RuntimeStatus{Zygote: ZygoteDown, Problem: "it is shutting down"}, r.Status())
	require.ErrorContains(t, r.Run(context.Background()), "it has run before")
}

func TestShutdownEndsAZygoteThatNoFolderLeadsTo(t *testing.T) {
	h := fakeHost(t)
	r, stop := h.agent()
	waitZygote(t, r, func(s RuntimeStatus) bool { return s.Zygote == ZygoteUp })
	zygote, ok := FindProc(r.Status().PID)
	require.True(t, ok)
	stop()
	require.NoError(t, os.RemoveAll(r.genDir(1)))
	require.NoError(t, h.new().Shutdown(within(t, 20*time.Second)))
	requireGone(t, zygote)
}

// On a host with systemd engines belong to another user: the agent may not signal
// them, and with no zygote up it starts one that does.
func TestWorkersOfAnotherUserAreEndedThoughNoZygoteIsUp(t *testing.T) {
	h := fakeHost(t)
	first, stop := h.agent()
	rec := h.fork(first, "w1").Record()
	zygote := Proc{PID: first.Status().PID}
	zygote, _ = FindProc(zygote.PID)
	stop()
	require.NoError(t, zygote.Signal(syscall.SIGKILL))

	h.manifest.Env = maps.Clone(h.manifest.Env)
	h.manifest.Env["FAKE_ZYGOTE_DIES"] = "ImportError: no module named torch"
	r := h.new()
	r.direct = func(p Proc, _ syscall.Signal) error {
		return fmt.Errorf("signal process %v: %w", p, syscall.EPERM)
	}
	stop = h.run(r)
	defer stop()
	waitZygote(t, r, func(s RuntimeStatus) bool { return s.Problem != "" })
	w, err := r.Adopt(soon(t), rec)
	require.NoError(t, err)
	require.NoError(t, w.Stop(within(t, 20*time.Second), 0))
	requireGone(t, rec.Engine, rec.API)
}

// A number is also the name of a systemd unit, whose end may take a while.
func TestNumberOfAGenerationIsNotUsedAgainByTheNextAgent(t *testing.T) {
	h := fakeHost(t)
	first, stop := h.agent()
	s := waitZygote(t, first, isUp)
	stop()
	zygote, ok := FindProc(s.PID)
	require.True(t, ok)
	require.NoError(t, zygote.Signal(syscall.SIGKILL))
	require.NoError(t, os.RemoveAll(first.genDir(s.Generation)))
	second, _ := h.agent()
	require.Equal(t, s.Generation+1, waitZygote(t, second, isUp).Generation)
}

func TestRuntimeThatWasRemovedKeepsWhatItServesAndNothingElse(t *testing.T) {
	idle, serving := fakeHost(t), fakeHost(t)
	for _, h := range []*host{idle, serving} {
		r, stop := h.agent()
		w := h.fork(r, "w1")
		if h == serving {
			serve(t, w, "p1")
		}
		z, _ := FindProc(r.Status().PID)
		all := append(procsOf(w), z)
		stop()
		for _, installed := range []bool{true, false} {
			EndForgotten(within(t, 20*time.Second), h.new().cfg, func(name string) bool { return installed && name == "fake" })
			for _, p := range all {
				require.Equal(t, installed || h == serving, p.Alive(), "installed: %v, serving: %v", installed, h == serving)
			}
		}
		_, err := os.Stat(r.genDir(1))
		require.Equal(t, h == serving, err == nil)
	}
}
