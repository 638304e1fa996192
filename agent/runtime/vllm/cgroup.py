"""A cgroup for each worker, within the one that systemd delegated to this zygote's unit.

    CG/zygote          the zygote
    CG/worker-ID       both halves of a worker, and whatever they start

A process cannot leave its cgroup by making a session of its own, nor by outliving its parent. So the members of a
worker's cgroup are the worker, whatever its engine did. No controller is asked for: tracking needs none.

Everything here is best effort: on a host without cgroup v2 workers are found by their sessions, as ever.
"""

import os
import sys

import process


class Tree:
    """The cgroup of this process, divided."""

    def __init__(self, root):
        self.root = root

    @classmethod
    def own(cls):
        """Moves this process into CG/zygote; None, with the reason on stderr, where that cannot be done."""
        try:
            tree = cls(_mine())
            if not join(tree._make("zygote")):
                raise LookupError(f"cannot move within {tree.root}")
            return tree
        except (OSError, LookupError) as e:
            print(f"warmd: no cgroup per worker: {e}", file=sys.stderr, flush=True)
            return None

    def worker(self, name):
        """The cgroup of a worker, made if need be; None when that fails."""
        try:
            return self._make("worker-" + name)
        except OSError as e:
            print(f"warmd: no cgroup for worker {name}: {e}", file=sys.stderr, flush=True)
            return None

    def _make(self, name):
        path = os.path.join(self.root, name)
        os.makedirs(path, exist_ok=True)
        return path


def _mine():
    """The folder of this process's own cgroup."""
    with open("/proc/self/cgroup") as f:
        path = next((line[3:].strip() for line in f if line.startswith("0::")), None)
    with open("/proc/self/mountinfo") as f:
        at = next((line.split(" ")[4] for line in f if " - cgroup2 " in line), None)
    if path is None or at is None:
        raise LookupError("cgroup v2 is not mounted")
    return os.path.join(at, path.lstrip("/")).rstrip("/")


def join(path, pid=0):
    """Moves a process (0: this one) into a cgroup; False when that fails. Safe in a fresh fork: only system calls."""
    try:
        fd = os.open(os.path.join(path, "cgroup.procs"), os.O_WRONLY)
        try:
            return os.write(fd, str(pid).encode()) > 0
        finally:
            os.close(fd)
    except OSError:
        return False


def members(path):
    """Stat of every living process in a cgroup and those below it."""
    found = []
    for folder, _, _ in os.walk(path):
        try:
            with open(os.path.join(folder, "cgroup.procs")) as f:
                pids = f.read().split()
        except OSError:
            continue
        for pid in pids:
            s = process.stat(pid)
            if s and s.state not in "ZX":
                found.append(s)
    return found


def clear(path):
    """Kills what a dead worker left in its cgroup, and removes that. False while something is still there.

    As with a session, Python's resource tracker is left to finish: it unlinks the worker's shared memory.
    """
    process.kill_all(lambda: members(path))
    for folder, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            pass
        except OSError:
            return False
    return True
