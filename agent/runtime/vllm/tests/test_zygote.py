"""The zygote's promises, with kind exec: no vLLM, only processes."""

import os
import signal
import subprocess
import sys
import time

import client
import drive
import process
import pytest
from conftest import ended, named

FOREVER = [sys.executable, "-c", "import signal; signal.pause()"]


def spawn(z, argv, worker="w", role="serve", **more):
    n = z.client.call("spawn", worker=worker, role=role, argv=argv, env=more.pop("env", {}), log=os.path.join(z.dir, "log"), **more)
    z.children.append(n)
    return {k: n[k] for k in ("pid", "start")}


def exit_of(z, name, c=None):
    return (c or z.client).wait(lambda e: e["ev"] == "exit" and e["pid"] == name["pid"])


def test_an_exec_zygote_says_what_it_is(exec_zygote):
    h = exec_zygote.hello
    assert (h["proto"], h["kind"], h["runtime"], h["generation"], h["children"], h["exits"]) == (1, "exec", "test", 1, [], [])
    assert h["pid"] == exec_zygote.process.pid and h["start"] == process.start_time(h["pid"])
    assert "fork" not in h["caps"]


def test_an_exec_zygote_imports_no_vllm_and_no_torch(exec_zygote):
    with open(f"/proc/{exec_zygote.process.pid}/maps") as f:
        assert not [line for line in f if "torch" in line or "vllm/_C" in line]


def test_another_protocol_is_refused(exec_zygote):
    with pytest.raises(client.Failed) as e:
        exec_zygote.client.call("hello", proto=2)
    assert e.value.code == "unsupported"


def test_a_spawned_process_has_the_environment_it_was_given_and_no_other(exec_zygote):
    n = spawn(exec_zygote, ["/usr/bin/env"], env={"A": "1", "B": "two words"})
    exit_of(exec_zygote, n)
    a, b, temp = sorted(drive.tail(os.path.join(exec_zygote.dir, "log")).splitlines())
    assert (a, b, temp.partition("=")[0]) == ("A=1", "B=two words", "TMPDIR")


def test_temporary_files_go_with_the_last_process_of_their_worker(exec_zygote):
    one = spawn(exec_zygote, FOREVER, role="engine")
    two = spawn(exec_zygote, ["/bin/sh", "-c", 'mkdir "$TMPDIR"/a && touch "$TMPDIR"/a/b && echo "$TMPDIR"'], role="api")
    exit_of(exec_zygote, two), exit_of(exec_zygote, one)
    folder = drive.tail(os.path.join(exec_zygote.dir, "log"))
    assert os.path.dirname(folder) == exec_zygote.dir and not os.path.exists(folder)


def test_a_folder_for_temporary_files_that_is_not_there_is_named(exec_zygote):
    with pytest.raises(client.Failed, match="TMPDIR.*no/such/folder") as e:
        spawn(exec_zygote, FOREVER, env={"TMPDIR": "/no/such/folder"})
    assert e.value.code == "bad_request"


def test_a_spawned_process_leads_its_own_session(exec_zygote):
    n = spawn(exec_zygote, FOREVER)
    s = process.stat(n["pid"])
    assert (s.session, s.pgrp) == (n["pid"], n["pid"])


def test_a_program_that_does_not_exist_is_refused_by_name(exec_zygote):
    with pytest.raises(client.Failed, match="/no/such/thing") as e:
        spawn(exec_zygote, ["/no/such/thing"])
    assert e.value.code == "bad_request"


def test_a_worker_gets_one_process_per_role(exec_zygote):
    spawn(exec_zygote, FOREVER)
    with pytest.raises(client.Failed) as e:
        spawn(exec_zygote, FOREVER)
    assert e.value.code == "bad_state"


def test_fork_is_unsupported_without_vllm(exec_zygote):
    with pytest.raises(client.Failed) as e:
        exec_zygote.client.call("fork", worker="w", role="engine", socket="/tmp/x", log="/dev/null", env={}, spec={})
    assert e.value.code == "unsupported"


@pytest.mark.parametrize("code", [0, 3, 70])
def test_an_exit_is_reported_with_its_code(exec_zygote, code):
    n = spawn(exec_zygote, [sys.executable, "-c", f"raise SystemExit({code})"])
    e = exit_of(exec_zygote, n)
    assert (e["code"], e["signal"], e["cause"], e["worker"], e["role"], e["start"]) == (code, None, "exit", "w", "serve", n["start"])


def test_exits_are_replayed_to_an_agent_that_was_away(exec_zygote):
    exec_zygote.client.close()
    c = client.Client(exec_zygote.socket)
    exec_zygote.client = c
    pids = []
    for i in range(3):
        n = spawn(exec_zygote, [sys.executable, "-c", f"raise SystemExit({i})"], worker=f"w{i}")
        pids.append(n["pid"])
        ended(n)
    c.call("ping")
    assert [(e["pid"], e["code"]) for e in client.Client(exec_zygote.socket).hello()["exits"]] == [(p, i) for i, p in enumerate(pids)]


@pytest.mark.parametrize("first,second", [("engine", "api"), ("api", "engine")])
def test_when_one_half_dies_the_other_is_killed(exec_zygote, first, second):
    a, b = spawn(exec_zygote, FOREVER, role=first), spawn(exec_zygote, FOREVER, role=second)
    bystander = spawn(exec_zygote, FOREVER, worker="other", role=second)
    os.kill(a["pid"], signal.SIGKILL)
    assert exit_of(exec_zygote, a)["cause"] == "exit"
    e = exit_of(exec_zygote, b)
    assert (e["cause"], e["signal"]) == ("pair", signal.SIGKILL)
    assert process.alive(**bystander)


def test_the_pair_rule_holds_with_no_agent_connected(exec_zygote):
    a, b = spawn(exec_zygote, FOREVER, role="engine"), spawn(exec_zygote, FOREVER, role="api")
    exec_zygote.client.close()
    os.kill(a["pid"], signal.SIGKILL)
    ended(b)


def test_what_a_dead_child_leaves_in_its_session_is_killed(exec_zygote):
    n = spawn(exec_zygote, ["/bin/sh", "-c", "sleep 1000 & echo $!"])
    exit_of(exec_zygote, n)
    orphan = int(drive.tail(os.path.join(exec_zygote.dir, "log")))
    assert not process.alive(orphan, process.start_time(orphan))


def test_kill_ends_the_whole_group_and_says_so(exec_zygote):
    n = spawn(exec_zygote, ["/bin/sh", "-c", "sleep 1000 & sleep 1000"])
    exec_zygote.client.call("kill", **n)
    e = exit_of(exec_zygote, n)
    assert (e["signal"], e["cause"]) == (signal.SIGKILL, "kill")
    assert not process.session_members(n["pid"])


def test_kill_sends_the_signal_it_was_asked_for(exec_zygote):
    n = spawn(exec_zygote, FOREVER)
    exec_zygote.client.call("kill", **n, signal=int(signal.SIGTERM))
    assert exit_of(exec_zygote, n)["signal"] == signal.SIGTERM


def test_kill_with_another_start_time_hits_nobody(exec_zygote):
    n = spawn(exec_zygote, FOREVER)
    with pytest.raises(client.Failed) as e:
        exec_zygote.client.call("kill", pid=n["pid"], start=n["start"] + 1)
    assert e.value.code == "gone" and process.alive(**n)


def test_kill_reaches_the_worker_of_an_earlier_generation(exec_zygote):
    stranger = subprocess.Popen(FOREVER)
    exec_zygote.client.call("kill", **named(stranger.pid))
    assert stranger.wait(60) == -signal.SIGKILL


def test_kill_of_a_process_that_is_gone_says_gone(exec_zygote):
    p = subprocess.Popen(FOREVER)
    n = named(p.pid)
    p.kill()
    p.wait()
    with pytest.raises(client.Failed) as e:
        exec_zygote.client.call("kill", **n)
    assert e.value.code == "gone"


def test_a_process_whose_first_thread_has_ended_is_killed_all_the_same(exec_zygote):
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(1000,)).start(); ctypes.CDLL(None).pthread_exit(None)"
    n = spawn(exec_zygote, [sys.executable, "-c", code])
    end = time.monotonic() + 20
    while process.stat(n["pid"]).state != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert process.alive(**n)
    exec_zygote.client.call("kill", **n)  # nobody may think that it is gone: a thread of it may hold a device
    assert exit_of(exec_zygote, n)["cause"] == "kill"


@pytest.mark.parametrize("how", ["stop", "kill -9"])
def test_children_live_on_when_the_zygote_ends(exec_zygote, how):
    n = spawn(exec_zygote, FOREVER)
    exec_zygote.client.call("stop") if how == "stop" else exec_zygote.process.kill()
    exec_zygote.process.wait(60)
    assert process.alive(**n)
    assert os.path.exists(exec_zygote.socket) == (how != "stop")


def test_garbage_and_broken_clients_do_not_disturb_the_zygote(exec_zygote):
    for junk in (b"\x00" * 1000 + b"\n", b"{" * 100 + b"\n", b'{"op":"spawn"}\n', b'{"op":"kill","pid":"x"}\n', b"half a line"):
        c = client.Client(exec_zygote.socket)
        c.send_raw(junk)
        c.close()
    exec_zygote.client.call("ping")


@pytest.mark.parametrize("request_", [{"op": "kill"}, {"op": "kill", "pid": -1, "start": 1}, {"op": "spawn", "worker": "w"}, {"op": "nothing"}])
def test_a_request_without_its_fields_is_refused(exec_zygote, request_):
    with pytest.raises(client.Failed) as e:
        exec_zygote.client.call(**request_)
    assert e.value.code == "bad_request"


def hazards(side, thread, before=""):
    """What check_clean says in a process with one more thread of that name, which sleeps."""
    code = (
        f"import os, sys; sys.path.insert(0, {side!r}); import zygote, process, threading\n{before}\n"
        "t = threading.Thread(target=threading.Event().wait, daemon=True); t.start()\n"
        f"open(f'/proc/self/task/{{t.native_id}}/comm', 'w').write({thread!r})\n"
        "while process.stat(f'{os.getpid()}/task/{t.native_id}').state != 'S': pass\n"
        "zygote.Zygote.check_clean(None)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_a_second_thread_is_fatal_and_named(side):
    for name in ("culprit", "cuda-EvtHandlr", "jemalloc_bg_thd"):
        p = hazards(side, name)
        assert p.returncode == 71 and f"thread {name}" in p.stderr, p.stderr


def test_the_sleeping_helper_of_nvml_is_no_hazard(side):
    p = hazards(side, "cuda00001800007")
    assert p.returncode == 0, p.stderr


def test_a_driver_that_was_initialised_is_fatal_whoever_did_it(side, tmp_path):
    """A libcuda.so.1 of ours, loaded as anybody might, that counts devices only after cuInit, as the real one does."""
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    source.write_text("static int up; int cuInit(int f) { up = 1; return 0; } int cuDeviceGetCount(int *n) { *n = 1; return up ? 0 : 3; }")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True)
    load = f"import ctypes; driver = ctypes.CDLL({str(library)!r})"
    assert hazards(side, "cuda00001800007", before=load).returncode == 0
    p = hazards(side, "cuda00001800007", before=load + "; driver.cuInit(0)")
    assert p.returncode == 71 and "CUDA is initialised" in p.stderr


def test_a_zygote_without_its_engine_says_which_versions_are_supported(tmp_path):
    bare = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    with pytest.raises(drive.ZygoteDied, match="not installed.*0.26.0 to 0.32.0"):
        drive.Zygote(str(bare / "bin" / "python"), {"PATH": "/usr/bin:/bin"}, kind="vllm")


def test_a_profile_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(drive.ZygoteDied, match="cannot read .*nothing.json"):
        drive.Zygote(sys.executable, {}, kind="exec", profile=str(tmp_path / "nothing.json"))
