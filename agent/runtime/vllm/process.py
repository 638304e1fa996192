"""Names, watches and ends processes without ever hitting the wrong one.

A pid is reused; a pid together with its start time (field 22 of /proc/PID/stat, clock ticks since boot) names a
process for ever. Signals that matter go through a pidfd, opened first and checked after, so that a process which
ends in between is never mistaken for its successor.
"""

import ctypes
import os
import re
import signal
import socket
import time

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

# Python's own helper that unlinks shared memory and semaphores once the processes that made them are gone. It ends by
# itself when they are, so it is the one member of a dead worker's session that must be left to finish.
_TRACKER = b"multiprocessing.resource_tracker"


class Stat:
    """The fields of /proc/PID/stat that we use."""

    __slots__ = ("pid", "name", "state", "ppid", "pgrp", "session", "cpu_ticks", "threads", "start", "rss_pages")

    def __init__(self, pid, raw):
        rest = raw[raw.rindex(b")") + 2 :].split()  # the command may hold spaces and brackets: cut after the last one
        self.pid = pid
        self.name = raw[raw.index(b"(") + 1 : raw.rindex(b")")].decode(errors="replace")
        self.state = rest[0].decode()
        self.ppid, self.pgrp, self.session = int(rest[1]), int(rest[2]), int(rest[3])
        self.cpu_ticks = int(rest[11]) + int(rest[12])
        self.threads, self.start, self.rss_pages = int(rest[17]), int(rest[19]), int(rest[21])

    def ended(self):
        """Whether all of it has: the first thread is a zombie before the others, one of which may still hold a device."""
        return self.state in "ZX" and self.threads <= 1


def stat(pid):
    """Stat of a process, or of a thread "PID/task/TID"; None when there is no such one."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return Stat(int(str(pid).rsplit("/", 1)[-1]), f.read())
    except (OSError, ValueError, IndexError):
        return None


def start_time(pid):
    """The start field of a process, 0 when there is no such process."""
    s = stat(pid)
    return s.start if s else 0


def alive(pid, start):
    """Whether exactly this process still runs (a zombie does not)."""
    s = stat(pid)
    return s is not None and s.start == start and not s.ended()


def open_pidfd(pid, start):
    """A pidfd of exactly this process; ProcessLookupError when it is gone."""
    fd = os.pidfd_open(pid)
    if not alive(pid, start):  # checked after the open: from here on the fd and the name are the same process
        os.close(fd)
        raise ProcessLookupError(f"process {pid} started at {start} is gone")
    return fd


def send(pid, start, sig):
    """Signals exactly this process, if it belongs to our user; ProcessLookupError or PermissionError otherwise."""
    fd = open_pidfd(pid, start)
    try:
        if os.geteuid() != 0 and os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            raise PermissionError(f"process {pid} belongs to another user")
        signal.pidfd_send_signal(fd, sig)
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} is gone") from None
    finally:
        os.close(fd)


def session_members(sid):
    """Stat of every living process in the session `sid` (a worker is the leader of its own)."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            s = stat(name)
            if s and (s.session == sid or s.pgrp == sid) and not s.ended():
                found.append(s)
    return found


def is_tracker(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return _TRACKER in f.read()
    except OSError:
        return False


def kill_session(sid, spare=()):
    """SIGKILLs every member of a worker's session but Python's resource tracker and the pids in `spare`.

    The tracker lives on for the milliseconds it needs to unlink the worker's shared memory: killing the whole group at
    once would leave segments in /dev/shm for ever. Returns how many processes were signalled.
    """
    return kill_all(lambda: session_members(sid), spare)


def kill_all(members, spare=()):
    """kill_session for whatever `members()` finds; repeats until it finds nothing new, because a member may fork while
    we look."""
    done = set()
    for _ in range(20):
        fresh = [
            s
            for s in members()
            if (s.pid, s.start) not in done and s.pid not in spare and not is_tracker(s.pid)
        ]
        if not fresh:
            break
        for s in fresh:
            done.add((s.pid, s.start))
            try:
                send(s.pid, s.start, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
    return len(done)


# NVML starts one helper thread in the process that calls nvmlInit (driver 580: "cuda00001800007"), and nvmlShutdown leaves
# it there. vLLM asks NVML which platform it runs on while it is imported, so on a GPU host every zygote has that thread.
_NVML_THREAD = re.compile(r"cuda[0-9a-f]{6,}$")


def fork_hazards():
    """What makes a fork of this process unsafe, in words; [] when nothing does.

    A fork copies only the calling thread: a lock that another one holds stays locked in the child for ever. NVML's helper
    is the one exception: it sleeps in the kernel and holds nothing, and a child that calls nvmlInit gets a helper of its
    own. And CUDA must not have been initialised, by whomever: the driver refuses to work in the child.
    """
    hazards, me = [], os.getpid()
    for tid in os.listdir("/proc/self/task"):
        s = None if int(tid) == me else stat(f"{me}/task/{tid}")
        if s is not None and not (_NVML_THREAD.match(s.name) and s.state == "S"):
            hazards.append(f"thread {s.name}")
    if cuda_is_initialised():
        hazards.append("CUDA is initialised")
    return hazards


def cuda_is_initialised():
    """Whether anybody in this process has called cuInit; torch.cuda.is_initialized() only knows of torch.

    The driver is asked for the number of devices: before cuInit it answers CUDA_ERROR_NOT_INITIALIZED, and does nothing.
    """
    NOT_INITIALISED, RTLD_NOLOAD = 3, 4
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False  # nobody has even loaded the driver
    return driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != NOT_INITIALISED


def usage():
    """rss, cpu, threads and uptime of this process and its descendants (the CPU platform's worker is a child of ours)."""
    me, rss, cpu, threads = stat(os.getpid()), 0, 0, 0
    for s in [m for m in session_members(os.getsid(0)) if not is_tracker(m.pid)]:
        rss += s.rss_pages * PAGE
        cpu += s.cpu_ticks
        threads += s.threads
    return {
        "rss_bytes": rss,
        "cpu_s": round(cpu / TICKS, 2),
        "threads": threads,
        "uptime_s": round(time.clock_gettime(time.CLOCK_BOOTTIME) - me.start / TICKS, 2),
    }


def become_subreaper():
    """Orphans of our workers are re-parented to us, so that they never stay zombies where pid 1 does not reap."""
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wake_pair():
    """A non-blocking socket pair for waking a poll loop from a signal handler or another thread."""
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    return a, b
