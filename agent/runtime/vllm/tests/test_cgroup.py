"""A worker is the members of its cgroup, whatever its processes did to be somebody else's."""

import os
import sys

import cgroup
import drive
import process
import pytest
from conftest import ended, named
from test_zygote import FOREVER, exit_of, spawn

# Starts a child with a session of its own, says its pid, and ends: the child is nobody's.
RUNAWAY = [
    sys.executable,
    "-c",
    "import os, subprocess, sys\n"
    "p = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], start_new_session=True)\n"
    "print(p.pid, flush=True)\n"
    "if sys.argv[1:] == ['stay']: import signal; signal.pause()\n",
]


@pytest.fixture
def group():
    """A cgroup such as systemd delegates. These tests need root and cgroup v2, as those of the units do."""
    with open("/proc/self/mountinfo") as f:
        at = next(line.split(" ")[4] for line in f if " - cgroup2 " in line)
    path = os.path.join(at, f"warmd-test-{os.getpid()}")
    os.makedirs(path, exist_ok=True)
    yield path
    assert cgroup.clear(path), cgroup.members(path)


@pytest.fixture
def zygote(group):
    z = drive.Zygote(sys.executable, {"PATH": os.environ["PATH"]}, kind="exec", group=group)
    yield z
    z.close()
    for s in cgroup.members(group):
        process.send(s.pid, s.start, 9)
        ended({"pid": s.pid, "start": s.start})


def where(pid):
    with open(f"/proc/{pid}/cgroup") as f:
        return next(line.strip() for line in f if line.startswith("0::")).rsplit("/", 2)[1:]


def child_of(z):
    """The pid that RUNAWAY said."""
    log = os.path.join(z.dir, "log")
    while not (said := drive.tail(log).split()):
        drive.select_a_moment()
    return named(int(said[0]))


def test_zygote_and_workers_have_a_cgroup_each(zygote, group):
    assert where(zygote.process.pid) == [os.path.basename(group), "zygote"]
    n = spawn(zygote, FOREVER, worker="w7")
    assert where(n["pid"]) == [os.path.basename(group), "worker-w7"]


def test_what_left_the_session_of_a_dead_worker_is_killed_and_its_cgroup_removed(zygote, group):
    n = spawn(zygote, RUNAWAY, worker="w1")
    runaway = child_of(zygote)
    assert process.stat(runaway["pid"]).session != n["pid"]
    exit_of(zygote, n)
    ended(runaway, 10)
    while os.path.exists(os.path.join(group, "worker-w1")):
        zygote.client.call("ping")  # its turn of the loop


def test_the_other_workers_cgroup_is_left_alone(zygote, group):
    other = spawn(zygote, FOREVER, worker="w1")
    n = spawn(zygote, RUNAWAY, worker="w2")
    exit_of(zygote, n)
    assert [s.pid for s in cgroup.members(os.path.join(group, "worker-w1"))] == [other["pid"]]


def test_half_of_a_pair_keeps_the_cgroup_until_the_other_is_gone(zygote, group):
    engine = spawn(zygote, FOREVER, worker="w1", role="engine")
    api = spawn(zygote, FOREVER, worker="w1", role="api")
    assert sorted(s.pid for s in cgroup.members(os.path.join(group, "worker-w1"))) == sorted([engine["pid"], api["pid"]])
    zygote.client.call("kill", **engine)
    exit_of(zygote, engine)
    exit_of(zygote, api)
    while os.path.exists(os.path.join(group, "worker-w1")):
        zygote.client.call("ping")


def test_a_program_that_cannot_be_started_leaves_no_cgroup(zygote, group):
    with pytest.raises(Exception, match="/no/such/thing"):
        spawn(zygote, ["/no/such/thing"], worker="w1")
    assert os.listdir(group).count("worker-w1") == 0


def test_without_cgroups_nothing_is_divided(exec_zygote):
    n = spawn(exec_zygote, FOREVER)
    assert where(n["pid"])[-1] != "worker-w"
