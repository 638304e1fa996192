package worker

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func sleeper(t *testing.T) (Proc, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, ok := FindProc(cmd.Process.Pid)
	require.True(t, ok)
	return p, cmd
}

func TestStatOfACommandWithBracketsAndSpaces(t *testing.T) {
	s, ok := parseStat([]byte("7 (a) b (c)) S 11 12 13 0 0 0 0 0 0 0 4 5 0 0 0 0 3 0 99 0 77 0"))
	require.True(t, ok)
	require.Equal(t, stat{state: 'S', ppid: 11, pgrp: 12, session: 13, cpuTicks: 9, threads: 3, start: 99, rss: 77}, s)
	for _, bad := range []string{"", "7 (a", "7 (a) S 1", "7 (a) S x 12 13 0 0 0 0 0 0 0 4 5 0 0 0 0 3 0 99 0 77 0"} {
		_, ok := parseStat([]byte(bad))
		require.False(t, ok, bad)
	}
}

func TestZombieIsNotAliveAndItsEndIsSeen(t *testing.T) {
	p, _ := sleeper(t)
	fd, err := p.open()
	require.NoError(t, err)
	defer fd.close()
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, fd.wait(short), context.DeadlineExceeded)
	require.NoError(t, p.Signal(syscall.SIGKILL))
	require.NoError(t, fd.wait(soon(t)), "waiting again after a timeout works")
	require.False(t, p.Alive(), "it was not waited for yet")
	require.NoError(t, fd.wait(context.Background()), "an end stays seen")
}

func TestAProcessRunsUntilItsLastThreadHasEnded(t *testing.T) {
	code := "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(1000,)).start(); ctypes.CDLL(None).pthread_exit(None)"
	cmd := exec.Command("python3", "-c", code)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, ok := FindProc(cmd.Process.Pid)
	require.True(t, ok)
	require.Eventually(t, func() bool { s, ok := readStat(p.PID); return ok && s.state == 'Z' }, 20*time.Second, time.Millisecond, "its first thread ends")
	require.True(t, p.Alive())
	fd, err := p.open()
	require.NoError(t, err)
	defer fd.close()
	require.NoError(t, p.Signal(syscall.SIGKILL))
	require.NoError(t, fd.wait(soon(t)))
	require.False(t, p.Alive())
}

func TestSignalNeverReachesAnotherStartTime(t *testing.T) {
	p, _ := sleeper(t)
	for _, wrong := range []Proc{{p.PID, p.Start + 1}, {p.PID, 0}, {0, 0}, {-1, p.Start}} {
		require.ErrorIs(t, wrong.Signal(syscall.SIGKILL), ErrGone, "%v", wrong)
		require.False(t, wrong.Alive())
	}
	require.True(t, p.Alive())
}

func TestSessionHasItsMembersAndNobodyElse(t *testing.T) {
	p, _ := sleeper(t)
	require.Equal(t, []Proc{p}, sessionMembers(p))
	require.Empty(t, sessionMembers(Proc{p.PID, p.Start + 1}), "another process has the number now")
	me, _ := FindProc(os.Getpid())
	require.Contains(t, sessionMembers(me), p, "a child that made its own session is still found")
}

func TestLauncherTellsHowAUnitEndedAndPassesNoEnvironment(t *testing.T) {
	t.Setenv("SECRET", "1")
	dir := t.TempDir()
	l := NewExecLauncher()
	u := Unit{Runtime: "r", Generation: 1, Argv: []string{"/bin/sh", "-c", "env; exit 3"}, Env: nil, Dir: dir, Log: dir + "/log/z.log", Socket: dir + "/s"}
	require.NoError(t, l.Start(context.Background(), u))
	<-l.units[u.Socket].done
	cause, ended := l.Exited(u)
	require.True(t, ended)
	require.Equal(t, "exited with code 3", cause)
	require.NotContains(t, tail(u.Log, 100), "SECRET")
	require.NoError(t, l.Stop(context.Background(), u), "stopping what has ended is no error")

	u.Argv = []string{"/bin/sleep", "1000"}
	require.NoError(t, l.Start(context.Background(), u))
	p := l.units[u.Socket].proc
	_, ended = l.Exited(u)
	require.False(t, ended)
	s, _ := readStat(p.PID)
	require.Equal(t, p.PID, s.session, "it leads a session of its own")
	require.NoError(t, l.Stop(soon(t), u))
	require.False(t, p.Alive())
	require.NoError(t, l.Stop(context.Background(), u))

	require.ErrorContains(t, l.Start(context.Background(), Unit{Runtime: "r", Generation: 2}), "start zygote r.2: no command")
	u.Argv = []string{"/nonexistent"}
	require.ErrorIs(t, l.Start(context.Background(), u), os.ErrNotExist)
}

func TestTailIsBoundedAndSurvivesBinary(t *testing.T) {
	path := t.TempDir() + "/log"
	require.Empty(t, tail(path, 5))
	b := make([]byte, 3*maxTail)
	for i := range b {
		b[i] = 0xff
	}
	require.NoError(t, os.WriteFile(path, append(b, "\nx\ny\n"...), 0o600))
	require.Equal(t, "x\ny", tail(path, 2))
	require.LessOrEqual(t, len(tail(path, 100)), maxTail)
	require.Empty(t, tail(path, 0))
}
