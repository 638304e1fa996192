package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"warmd/placement"
)

// These tests kill real processes (agent, coordinator, etcd, zygote, engine) with
// engines of kind exec, so that each of them takes seconds. The Real tests do the
// same to vLLM.

// execHost is a host whose runtimes are: ok, hang (never answers), exit (dies at once).
func execHost(t *testing.T, slots int, change ...func(*host)) *host {
	t.Helper()
	base := t.TempDir()
	root, models := filepath.Join(base, "rt"), filepath.Join(base, "models")
	for _, m := range []string{"a", "b", "c"} {
		if err := os.MkdirAll(filepath.Join(models, m), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	execRuntime(t, root, "ok")
	execRuntime(t, root, "hang", "--fault", "hang")
	execRuntime(t, root, "exit", "--fault", "exit")
	h := startHost(t, root, models, slots, change...)
	h.joined(t)
	eventually(t, 30*time.Second, "zygotes up", func() error {
		s, err := h.node.Node(t.Context())
		if err != nil {
			return err
		}
		for _, r := range s.Capacity.Runtimes {
			if r.Problem != "" || r.Zygote == "starting" || r.Zygote == "down" {
				return fmt.Errorf("runtime %+v", r)
			}
		}
		return nil
	})
	return h
}

func TestAgentKilledInEachStateOfAPlacementLosesAndDoublesNothing(t *testing.T) {
	h := execHost(t, 2)
	ready := h.place(t, placement.Request{Model: "a", Runtime: "ok"})
	// A second one is loading while the agent dies.
	type outcome struct {
		p   placement.Placement
		err error
	}
	loading := make(chan outcome, 1)
	accepted := make(chan struct{})
	var once sync.Once
	go func() {
		p, err := h.coord.Place(t.Context(), placement.Request{Model: "b", Runtime: "hang", TimeoutSeconds: 15}, "ready", func(p placement.Progress) {
			if p.Event == placement.EventAccepted {
				once.Do(func() { close(accepted) })
			}
		})
		loading <- outcome{p, err}
	}()
	<-accepted
	var before []workerOn
	eventually(t, 10*time.Second, "both engines run", func() (err error) {
		before, err = h.node.Workers(t.Context())
		if err == nil && (len(before) != 2 || before[0].EnginePID == 0 || before[1].EnginePID == 0) {
			err = fmt.Errorf("workers %+v", before)
		}
		return err
	})
	h.agent.end(syscall.SIGKILL)
	if _, err := askTokens(t.Context(), ready, "x", 1); err != nil {
		t.Errorf("completion while the agent is dead: %v", err)
	}
	h.startAgent(t)
	took := eventually(t, 10*time.Second, "re-adopted", func() error {
		after, err := h.node.Workers(t.Context())
		if err != nil {
			return err
		}
		return sameWorkers(before, after)
	})
	t.Logf("re-adopted %d workers (one serving, one loading) in %s", len(before), took.Round(time.Millisecond))
	got := <-loading
	if e := placement.AsError(got.err); got.err == nil || (e.Code != placement.CodeTimeout && e.Code != placement.CodeStartFailed) {
		t.Errorf("the placement that never gets ready ended with %v, want its deadline", got.err)
	}
	eventually(t, 10*time.Second, "its slot is free again", func() error {
		s, err := h.node.Node(t.Context())
		if err != nil {
			return err
		}
		if _, free, busy, quarantined, _ := s.Capacity.Totals(); free != 1 || busy != 1 || quarantined != 0 {
			return fmt.Errorf("free %d busy %d quarantined %d", free, busy, quarantined)
		}
		return nil
	})
	h.release(t, ready.ID)
}

func TestCoordinatorKilledWhileAPlacementLoadsTheNextOneFinishesItOnce(t *testing.T) {
	h := execHost(t, 2)
	accepted := make(chan struct{})
	var once sync.Once
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, _ = h.coord.Place(ctx, placement.Request{ID: "req-1", Model: "b", Runtime: "hang", TimeoutSeconds: 60}, "ready", func(p placement.Progress) {
			if p.Event == placement.EventAccepted {
				once.Do(func() { close(accepted) })
			}
		})
	}()
	<-accepted
	h.coordinator.end(syscall.SIGKILL)
	h.startCoordinator(t)
	h.joined(t)
	ps, err := h.coord.Placements(t.Context(), true)
	if err != nil || len(ps) != 1 {
		t.Fatalf("placements after the crash: %v %+v", err, ps)
	}
	ws, err := h.node.Workers(t.Context())
	if err != nil || len(slices.DeleteFunc(ws, func(w workerOn) bool { return w.Placement == "" })) != 1 {
		t.Errorf("workers that hold a placement: %v %+v", err, ws)
	}
	h.release(t, ps[0].ID)
	again, err := h.coord.Place(t.Context(), placement.Request{Model: "a", Runtime: "ok"}, "ready", nil)
	if err != nil {
		t.Fatalf("place after the crash: %v", err)
	}
	h.release(t, again.ID)
}

func TestEtcdKilledPlacingFailsFastCapacityAnswersAndItHealsAlone(t *testing.T) {
	h := execHost(t, 2)
	p := h.place(t, placement.Request{Model: "a", Runtime: "ok"})
	h.etcd.end(syscall.SIGKILL)
	if _, err := askTokens(t.Context(), p, "x", 1); err != nil {
		t.Errorf("completion without etcd: %v", err)
	}
	if f, err := h.coord.Fleet(t.Context()); err != nil || len(f.Nodes) == 0 {
		t.Errorf("capacity from the coordinator without etcd: %v %+v", err, f)
	}
	if f, err := h.node.Fleet(t.Context()); err != nil || len(f.Nodes) == 0 {
		t.Errorf("capacity from the agent without etcd: %v %+v", err, f)
	}
	begin := time.Now()
	_, err := h.coord.Place(t.Context(), placement.Request{Model: "b", Runtime: "ok"}, "ready", nil)
	if e := placement.AsError(err); err == nil || e.Code != placement.CodeUnavailable || e.Hint == "" {
		t.Errorf("place without etcd: %v", err)
	}
	t.Logf("refused after %s", time.Since(begin).Round(time.Millisecond))
	h.startEtcd(t)
	eventually(t, 15*time.Second, "placing works again", func() error {
		q, err := h.coord.Place(t.Context(), placement.Request{Model: "b", Runtime: "ok"}, "ready", nil)
		if err != nil {
			return err
		}
		h.release(t, q.ID)
		return nil
	})
	h.release(t, p.ID)
}

func TestCapacityIsAnsweredByAnyMemberWhileCoordinatorAndEtcdAreDown(t *testing.T) {
	h := execHost(t, 2)
	h.coordinator.end(syscall.SIGKILL)
	h.etcd.end(syscall.SIGKILL)
	f, err := h.node.Fleet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(f.Nodes, func(n placement.NodeView) bool { return n.Node == "host1" })
	if i < 0 || f.From != "host1" || f.Nodes[i].Devices[0].Slots != 2 {
		t.Errorf("fleet %+v", f)
	}
}

func TestTwoPlacesForTheLastSlotExactlyOneWinsAndTheOtherMayWait(t *testing.T) {
	h := execHost(t, 1)
	var wg sync.WaitGroup
	results := make([]error, 8)
	placed := make([]placement.Placement, 8)
	for i := range results {
		wg.Go(func() {
			placed[i], results[i] = h.coord.Place(t.Context(), placement.Request{Model: "a", Name: fmt.Sprintf("m%d", i), Runtime: "ok"}, "ready", nil)
		})
	}
	wg.Wait()
	won := -1
	for i, err := range results {
		if err == nil {
			if won >= 0 {
				t.Errorf("placements %d and %d both won the last slot", won, i)
			}
			won = i
			continue
		}
		if e := placement.AsError(err); e.Code != placement.CodeNoCapacity {
			t.Errorf("loser %d: %v", i, err)
		}
	}
	if won < 0 {
		t.Fatal("nobody won the last slot")
	}
	waiting := make(chan error, 1)
	queued := make(chan struct{})
	var once sync.Once
	go func() {
		p, err := h.coord.Place(t.Context(), placement.Request{Model: "b", Runtime: "ok", WaitCapacity: true, TimeoutSeconds: 60}, "ready", func(p placement.Progress) {
			if p.Event == placement.EventQueued {
				once.Do(func() { close(queued) })
			}
		})
		if err == nil {
			_, err = h.coord.Release(t.Context(), p.ID, 0)
		}
		waiting <- err
	}()
	<-queued
	h.release(t, placed[won].ID)
	if err := <-waiting; err != nil {
		t.Errorf("the one that waited for capacity: %v", err)
	}
}

func TestSameRequestIDIsOnePlacementAndAnotherRequestWithItIsAConflict(t *testing.T) {
	h := execHost(t, 2)
	r := placement.Request{ID: "deploy-7", Model: "a", Runtime: "ok"}
	var wg sync.WaitGroup
	ids := make([]string, 4)
	for i := range ids {
		wg.Go(func() {
			p, err := h.coord.Place(t.Context(), r, "ready", nil)
			if err != nil {
				t.Error(err)
			}
			ids[i] = p.ID
		})
	}
	wg.Wait()
	if len(slices.Compact(ids)) != 1 {
		t.Errorf("placements %v, want one", ids)
	}
	r.Model = "b"
	if _, err := h.coord.Place(t.Context(), r, "ready", nil); err == nil || placement.AsError(err).Code != placement.CodeConflict {
		t.Errorf("another request with the same id: %v", err)
	}
	h.release(t, ids[0])
}

func TestEngineThatNeverGetsReadyFailsAtItsDeadlineWithItsLastLogLines(t *testing.T) {
	h := execHost(t, 1)
	for name, want := range map[string]string{"hang": "waiting for a card that never comes", "exit": "no such device"} {
		_, err := h.coord.Place(t.Context(), placement.Request{Model: "a", Runtime: name, TimeoutSeconds: 2}, "ready", nil)
		e := placement.AsError(err)
		if err == nil || !strings.Contains(e.Message+e.Detail, want) {
			t.Errorf("runtime %s: %v detail %q, want the log line %q", name, err, e.Detail, want)
		}
	}
	p := h.place(t, placement.Request{Model: "a", Runtime: "ok"})
	h.release(t, p.ID)
}

func TestBadRequestsAreRefusedByNameAndLoseNothing(t *testing.T) {
	h := execHost(t, 1)
	for name, c := range map[string]struct {
		r    placement.Request
		code placement.Code
		says string
	}{
		"unknown runtime":   {placement.Request{Model: "a", Runtime: "nope"}, placement.CodeUnknownRuntime, "nope"},
		"ambiguous runtime": {placement.Request{Model: "a"}, placement.CodeUnknownRuntime, "names none"},
		"missing model":     {placement.Request{Model: "zzz", Runtime: "ok"}, placement.CodeModelNotFound, "zzz"},
		"outside the roots": {placement.Request{Model: "/etc", Runtime: "ok"}, placement.CodeModelNotFound, "/etc"},
		"parent folder":     {placement.Request{Model: "../../etc", Runtime: "ok"}, placement.CodeModelNotFound, "etc"},
		"unknown node":      {placement.Request{Model: "a", Runtime: "ok", Node: "mars"}, "", "mars"},
		"bad start":         {placement.Request{Model: "a", Runtime: "ok", Start: "hot"}, placement.CodeBadRequest, "start"},
	} {
		_, err := h.coord.Place(t.Context(), c.r, "ready", nil)
		e := placement.AsError(err)
		if err == nil || (c.code != "" && e.Code != c.code) || !strings.Contains(e.Error(), c.says) {
			t.Errorf("%s: %s %v, want code %s and %q", name, e.Code, err, c.code, c.says)
		}
	}
	p := h.place(t, placement.Request{Model: "a", Runtime: "ok"})
	h.release(t, p.ID)
}

func TestZygoteAndEngineKilledInEachStateTheSlotComesBack(t *testing.T) {
	h := execHost(t, 1)
	for range 2 {
		p := h.place(t, placement.Request{Model: "a", Runtime: "ok"})
		w := workerOf(t, h, p.ID)
		if err := syscall.Kill(parentOf(t, w.EnginePID), syscall.SIGKILL); err != nil { // the zygote
			t.Fatal(err)
		}
		if _, err := askTokens(t.Context(), p, "x", 1); err != nil {
			t.Errorf("completion after the zygote's death: %v", err)
		}
		if err := syscall.Kill(w.EnginePID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		took := eventually(t, 5*time.Second, "death reported", func() error {
			got, err := h.node.Placement(t.Context(), p.ID)
			if err != nil || got.State != placement.Failed || got.Reason == "" {
				return fmt.Errorf("%w %+v", err, got)
			}
			return nil
		})
		t.Logf("reported in %s", took.Round(time.Millisecond))
		eventually(t, 15*time.Second, "slot usable again", func() error {
			q, err := h.coord.Place(t.Context(), placement.Request{Model: "b", Runtime: "ok"}, "ready", nil)
			if err != nil {
				return err
			}
			_, err = h.coord.Release(t.Context(), q.ID, 0)
			return err
		})
	}
}

func TestDevRunsThreeNodesAndLeavesNothingBehind(t *testing.T) {
	base := t.TempDir()
	dir, err := os.MkdirTemp("", "warmd-dev-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	root, models := filepath.Join(base, "rt"), filepath.Join(base, "models")
	if err := os.MkdirAll(filepath.Join(models, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	execRuntime(t, root, "ok")
	dev := start(t, "dev", "play-warmd", "dev", "--data", dir, "--runtimes", root, "--models", models, "--nodes", "3", "--slots", "1")
	c := coordClient(t, dir+"/coordinator.sock")
	eventually(t, 30*time.Second, "three nodes", func() error {
		f, err := c.Fleet(t.Context())
		if err != nil {
			return err
		}
		n := 0
		for _, v := range f.Nodes {
			if v.Alive && len(v.Devices) > 0 && !v.Summary {
				n++
			}
		}
		if n != 3 {
			return fmt.Errorf("%d nodes: %+v", n, f.Nodes)
		}
		return nil
	})
	nodes := map[string]bool{}
	for i := range 3 {
		p, err := c.Place(t.Context(), placement.Request{Model: "a", Name: fmt.Sprint("m", i), Runtime: "ok"}, "ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		nodes[p.Node] = true
	}
	if len(nodes) != 3 {
		t.Errorf("three placements on nodes %v, want one each", nodes)
	}
	_ = dev.Process.Signal(syscall.SIGINT) // twice at once, as timeout(1) does it
	dev.end(syscall.SIGINT)
	if code := dev.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after Ctrl-C", code)
	}
	if out, _ := exec.Command("pgrep", "-af", dir).Output(); len(out) > 0 {
		t.Errorf("left behind: %s", out)
	}
}
