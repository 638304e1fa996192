"""The zygote's children: who they are, how they ended, and the pair rule.

A worker is a pair (engine, api). When one half ends, the zygote kills the other, whether or not an agent is there to
ask for it: an API server without its engine answers nobody, an engine without its API server holds a GPU for nobody.
What a dead child leaves behind in its session is killed too, while the child is still a zombie, so that its pid cannot
have been given to anybody else.
"""

import collections
import os
import shutil
import signal
import tempfile
import time

import cgroup
import process

PAIR = ("engine", "api")
KEPT_EXITS = 256  # what an agent that was away can still learn from hello
PAIR_LOST = 70  # a half that saw its other half go ends with this code


class Child:
    __slots__ = ("pid", "start", "worker", "role", "cause", "popen", "socket", "group")

    def __init__(self, pid, start, worker, role, popen, socket, group):
        self.pid, self.start, self.worker, self.role = pid, start, worker, role
        self.popen, self.socket, self.group = popen, socket, group
        self.cause = "exit"

    def kill(self):
        """SIGKILL for the child and its session; the child by itself first, it may not have made its session yet."""
        try:
            process.send(self.pid, self.start, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.kill_session(self.pid)

    def name(self):
        return {"pid": self.pid, "start": self.start, "worker": self.worker, "role": self.role}


class Children:
    def __init__(self, emit):
        self._emit = emit
        self._by_pid = {}
        self._left = set()  # cgroups of workers that are dead, until nobody is in them
        self._temps = {}  # of each worker that lives: its folder for temporary files
        self.exits = collections.deque(maxlen=KEPT_EXITS)

    def add(self, pid, worker, role, popen=None, socket=None, group=None):
        """Takes note of a process just started; returns its name. It cannot be reaped before: only we reap."""
        start = process.start_time(pid)
        self._by_pid[pid] = Child(pid, start, worker, role, popen, socket, group)
        return {"pid": pid, "start": start}

    def temp(self, worker, env):
        """The worker's own folder for temporary files, in TMPDIR of `env` or of ours; it goes when the worker does.

        vLLM leaves six sockets and files there at each start, and a worker is killed, never asked to tidy up.
        """
        if worker not in self._temps:
            self._temps[worker] = tempfile.mkdtemp(prefix=f"warmd-{worker}-", dir=env.get("TMPDIR"))
        return self._temps[worker]

    def clear(self, worker):
        """Removes the worker's folder, once none of its processes is left. Says whether that is so."""
        if any(c.worker == worker for c in self._by_pid.values()):
            return False
        shutil.rmtree(self._temps.pop(worker, ""), ignore_errors=True)
        return True

    def find(self, worker, role):
        return next((c for c in self._by_pid.values() if c.worker == worker and c.role == role), None)

    def listing(self):
        return [c.name() for c in self._by_pid.values()]

    def signal(self, pid, start, sig):
        """Signals a child's whole group, or any other process of our user by pid and start time."""
        child = self._by_pid.get(pid)
        if child is None or child.start != start:
            process.send(pid, start, sig)
            return
        if not process.alive(pid, start):
            raise ProcessLookupError(pid)
        if sig == signal.SIGKILL:
            child.cause = "kill"
            child.kill()
        else:
            if sig == signal.SIGTERM:
                child.cause = "kill"
            os.killpg(pid, sig)

    def reap(self):
        """Collects every child that has ended, and applies the pair rule.

        Orphans of a worker are our children, too: each that ends brings us here, so a cgroup that could not be removed
        yet is tried again exactly when that may succeed.
        """
        self._collect()
        self._left = {group for group in self._left if not cgroup.clear(group)}

    def _collect(self):
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            child = self._by_pid.get(info.si_pid)
            if child:
                process.kill_session(child.pid)  # its leftovers, while the zombie still holds the pid
            _, status = os.waitpid(info.si_pid, 0)
            if child:  # else an orphan of a worker, given to us as the subreaper
                del self._by_pid[child.pid]
                if self.clear(child.worker) and child.group:
                    self._left.add(child.group)
                self._ended(child, status)

    def _ended(self, child, status):
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        sig = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        if child.popen is not None:
            child.popen.returncode = code if code is not None else -sig  # else Popen would wait for it again, later
        if child.socket is not None:
            try:
                os.unlink(child.socket)  # a killed half could not
            except OSError:
                pass
        if code == PAIR_LOST and child.role in PAIR:
            child.cause = "pair"
        event = {"ev": "exit", **child.name(), "code": code, "signal": sig, "cause": child.cause, "t_ns": time.monotonic_ns()}
        self.exits.append(event)
        self._emit(event)
        if child.role in PAIR:
            other = self.find(child.worker, "api" if child.role == "engine" else "engine")
            if other:
                other.cause = "pair"
                other.kill()
