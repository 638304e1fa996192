"""The contract with vLLM, on real installs: what warmd promises about a parked start, version by version.

Slow: about five minutes per install. Nothing here is skipped; what is missing fails.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request

import client
import drive
import process
import pytest
from collector import Collector
from conftest import ended, named

pytestmark = pytest.mark.contract
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Traces:
    """Everything that a pair has in the system, noted while it lives, so that one can look for it afterwards."""

    def __init__(self, pair):
        self.pair, self.processes, self.shm = pair, [], set()
        self.note()

    def note(self):
        for n in (self.pair.engine_name, self.pair.api_name):
            for s in process.session_members(n["pid"]):
                self.processes.append({"pid": s.pid, "start": s.start})
                try:
                    with open(f"/proc/{s.pid}/maps") as f:
                        self.shm |= set(re.findall(r"/dev/shm/\S+", f.read()))
                except OSError:
                    pass  # it just ended

    def temporary(self):
        """The files of the pair's own folder for temporary files, the folder itself first."""
        top = self.pair.zygote.dir
        folders = [os.path.join(top, n) for n in os.listdir(top) if n.startswith(f"warmd-{self.pair.name}-")]
        return folders + [n for f in folders for n in os.listdir(f)]

    def assert_gone(self):
        for n in self.processes:
            ended(n)
        assert [p for p in self.shm if os.path.exists(p)] == []
        left = [n for n in os.listdir(self.pair.dir) if not n.endswith(".log")]
        assert [n for n in left if n.endswith(".sock")] == []
        assert self.temporary() == []


@pytest.fixture
def pair(zygote):
    p = zygote.pair()
    yield p
    for n in (p.engine_name, p.api_name):
        try:
            process.send(n["pid"], n["start"], signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.kill_session(n["pid"])


def flags(model, *more):
    return ["--model", model, "--served-model-name", "m", *drive.SMALL, *more]


def answers(port):
    """What a start is judged by: several greedy answers, one of them with its logprobs' tokens."""
    said = [drive.ask(port, prompt=p, tokens=16) for p in ("Hello my name is", "1 2 3", "the end of")]
    return [*said, drive.ask(port, path="/v1/chat/completions", tokens=16)]


def await_running(pair):
    """Until a request really runs."""
    for _ in range(3000):
        with urllib.request.urlopen(f"http://127.0.0.1:{pair.port}/metrics") as r:
            if re.search(rb"^vllm:num_requests_running\{.*\} 1\.0", r.read(), re.M):
                return


class Stock:
    """A plain `vllm serve`, started as a zygote spawns a cold one."""

    def __init__(self, runtime, model, zygote):
        s = socket.socket()
        s.bind(("127.0.0.1", 0))
        self.port = s.getsockname()[1]
        s.close()
        vllm = os.path.join(os.path.dirname(runtime.python), "vllm")
        argv = [vllm, "serve", model, *flags(model)[2:], "--host", "127.0.0.1", "--port", str(self.port)]
        self.zygote, self.log = zygote, os.path.join(zygote.dir, f"stock-{self.port}.log")
        n = zygote.client.call("spawn", worker=f"stock-{self.port}", role="serve", argv=argv, env=runtime.env, log=self.log)
        self.name = {k: n[k] for k in ("pid", "start")}

    def __enter__(self):
        for _ in range(30000):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=60).close()
                return self.port
            except OSError:
                assert process.alive(**self.name), drive.tail(self.log)
                drive.select_a_moment()
        raise AssertionError(drive.tail(self.log))

    def __exit__(self, *_):
        self.zygote.client.call("kill", **self.name)
        self.zygote.client.wait(lambda e: e["ev"] == "exit" and e["pid"] == self.name["pid"])


# -- the rehearsal


def test_a_rehearsal_records_a_profile_and_reports_its_steps(rehearsed):
    runtime, said = rehearsed
    assert said.returncode == 0, said.stdout + said.stderr
    steps = [json.loads(line) for line in said.stdout.splitlines()]
    assert all({"step", "elapsed_s"} <= set(s) for s in steps) and steps[-1]["step"] == "done"
    with open(runtime.profile) as f:
        profile = json.load(f)
    assert profile["version"] == runtime.version and len(profile["modules"]) > 50
    assert os.path.exists(os.path.join(runtime.folder, "model", "config.json"))


def test_a_rehearsal_without_a_manifest_says_what_is_missing(runtime, tmp_path, side):
    p = subprocess.run([runtime.python, os.path.join(side, "rehearse.py"), "--runtime", str(tmp_path)], capture_output=True, text=True)
    assert p.returncode == 2 and "runtime.json" in p.stderr


def test_the_zygote_has_one_thread_with_the_whole_profile_imported(zygote):
    assert len(os.listdir(f"/proc/{zygote.process.pid}/task")) == 1
    assert zygote.hello["profile_modules"] > 50 and zygote.hello["kind"] == "vllm"


# -- a parked start is a start


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-llama", "opt-125m"])
def test_a_parked_start_gives_the_same_greedy_tokens_as_a_stock_one(runtime, zygote, pair, models, name):
    pair.load(flags(models[name]))
    parked = answers(pair.port)
    traces = Traces(pair)
    pair.kill()
    traces.assert_gone()
    with Stock(runtime, models[name], zygote) as port:
        assert answers(port) == parked


def test_a_load_reports_its_states_and_phases(pair, models):
    assert pair.engine.hello()["state"] == pair.api.hello()["state"] == "warm"
    pair.load(flags(models["tiny-opt"]))
    for c in (pair.engine, pair.api):
        c.wait(lambda e: e["ev"] == "state" and e["state"] == "serving")
        assert [e["state"] for e in c.events if e["ev"] == "state"] == ["loading", "serving"]
    late = pair.engine.hello()
    assert late["state"] == "serving" and (late["placement"], late["attempt"], late["error"]) == ("p1", 1, None)
    names = [(p["name"], p["warm"]) for p in late["phases"]]
    assert names == [("import", True), ("fork", True), ("parse", False), ("config", False), ("handshake", False), ("engine_init", False)]
    assert [p["name"] for p in pair.api.hello()["phases"]] == ["import", "fork", "parse", "app_build"]
    stats = pair.engine.call("stats")
    assert stats["rss_bytes"] > 1 << 30 and stats["threads"] > 1 and stats["uptime_s"] > 0


def test_a_load_is_idempotent_and_a_half_serves_one_placement(pair, models):
    pair.load(flags(models["tiny-opt"]))
    fields = {"argv": flags(models["tiny-opt"]), "env": {}, "dir": pair.dir, "peer": pair.api_name}
    assert pair.engine.call("load", placement="p1", attempt=1, **fields)["id"]
    with pytest.raises(client.Failed) as e:
        pair.engine.call("load", placement="p2", attempt=1, **fields)
    assert e.value.code == "bad_state"
    pair.ask()


def test_the_environment_of_the_load_reaches_the_engine(pair, models):
    pair.load(flags(models["tiny-opt"]), env={"VLLM_CPU_KVCACHE_SPACE": "2"})
    pair.ask()
    assert "KV cache size: 2,097,152 tokens" in drive.tail(pair.log("engine"), 1 << 20)  # 1 GiB is 1,048,576


# -- ends


@pytest.mark.parametrize("victim", ["engine", "api"])
@pytest.mark.parametrize("when", ["parked", "serving"])
def test_kill_9_of_one_half_ends_the_pair_and_leaves_nothing(pair, models, victim, when):
    if when == "serving":
        pair.load(flags(models["tiny-opt"]))
        pair.ask()
    traces = Traces(pair)
    assert len(traces.temporary()) == 1 if when == "parked" else len(traces.temporary()) > 4  # vLLM's sockets among them
    os.kill(getattr(pair, f"{victim}_name")["pid"], signal.SIGKILL)
    engine, api = pair.wait_exits()
    first, second = (engine, api) if victim == "engine" else (api, engine)
    assert first["signal"] == signal.SIGKILL and second["cause"] == "pair"
    traces.assert_gone()


def test_kill_9_of_the_vllm_worker_ends_the_pair(pair, models):
    pair.load(flags(models["tiny-opt"]))
    pair.ask()
    traces = Traces(pair)
    children = [s for s in process.session_members(pair.engine_name["pid"]) if s.pid != pair.engine_name["pid"] and not process.is_tracker(s.pid)]
    assert children, "on the CPU platform the worker is a process of its own"
    os.kill(children[0].pid, signal.SIGKILL)
    engine, api = pair.wait_exits()
    assert engine["cause"] == "exit" and api["cause"] == "pair", "the engine is the cause, not the server that was left alone"
    traces.assert_gone()


def test_drain_finishes_what_runs_and_takes_nothing_new(pair, models):
    pair.load(flags(models["tiny-opt"]))
    pair.ask()
    traces, answer = Traces(pair), []
    running = threading.Thread(target=lambda: answer.append(pair.ask(tokens=200)))
    running.start()
    await_running(pair)
    pair.api.call("drain", grace_ms=60000)
    engine, api = pair.wait_exits()
    running.join(60)
    assert len(answer) == 1 and answer[0]
    assert (api["code"], api["cause"], engine["cause"]) == (0, "exit", "pair")
    with pytest.raises(OSError):
        pair.ask()
    traces.assert_gone()


def test_drain_ends_in_time_when_a_request_does_not(pair, models):
    pair.load(flags(models["tiny-llama"]))
    pair.ask()
    silent = socket.create_connection(("127.0.0.1", pair.port))
    silent.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n")
    pair.api.call("drain", grace_ms=300)
    assert pair.wait_exits()[1]["code"] == 0
    silent.close()


def test_drain_of_a_parked_half_ends_it_and_the_engine_refuses(pair):
    with pytest.raises(client.Failed) as e:
        pair.engine.call("drain", grace_ms=1)
    assert e.value.code == "bad_request"
    pair.api.call("drain", grace_ms=1)
    assert pair.wait_exits()[1]["code"] == 0


def test_stop_ends_a_half_at_once(pair):
    pair.engine.call("stop")
    assert pair.wait_exits()[0]["code"] == 0


def test_sleep_is_for_a_serving_api_half(pair):
    for c, code in ((pair.engine, "bad_request"), (pair.api, "bad_state")):
        with pytest.raises(client.Failed) as e:
            c.call("sleep", grace_ms=0)
        assert e.value.code == code


def test_an_engine_on_a_cpu_says_that_it_cannot_sleep_and_serves_on(pair, models):
    pair.load(flags(models["tiny-opt"]))
    before = pair.ask()
    with pytest.raises(client.Failed, match="needs a GPU") as e:
        pair.api.call("sleep", grace_ms=0)
    assert e.value.code == "unsupported"
    assert not pair.api.call("wake").get("dur_ns"), "it is awake: nothing to do"
    assert pair.ask() == before and pair.api.hello()["state"] == "serving"


def test_a_sleeping_model_turns_requests_away_until_it_wakes(pair, models):
    """Level 0: the one that a CPU can do, all the way to the engine and back."""
    pair.load(flags(models["tiny-opt"]))
    before = pair.ask()
    assert pair.api.call("sleep", level=0, grace_ms=1000)["dur_ns"] > 0
    assert "dur_ns" not in pair.api.call("sleep", level=0), "it sleeps: nothing to do"
    assert pair.api.hello()["state"] == "sleeping"
    with pytest.raises(urllib.error.HTTPError) as e:
        pair.ask()
    assert (e.value.code, e.value.headers["Retry-After"]) == (503, "2")
    with urllib.request.urlopen(f"http://127.0.0.1:{pair.port}/health") as r:
        assert r.status == 200
    assert pair.api.call("wake")["dur_ns"] > 0
    assert pair.ask() == before
    states = [e["state"] for e in pair.api.events if e["ev"] == "state"]
    assert states == ["loading", "serving", "sleeping", "serving"]


def test_sleep_waits_for_running_requests_and_gives_up_on_long_ones(pair, models):
    pair.load(flags(models["tiny-opt"]))
    pair.ask()
    with drive.post(pair.port, tokens=200, stream=True) as running:
        assert running.readline().startswith(b"data:")
        os.kill(pair.engine_name["pid"], signal.SIGSTOP)  # or it might be over before sleep is asked for
        with pytest.raises(client.Failed, match="1 requests still run") as e:
            pair.api.call("sleep", level=0, grace_ms=0)
        assert e.value.code == "busy"
        os.kill(pair.engine_name["pid"], signal.SIGCONT)
        pair.api.call("sleep", level=0, grace_ms=60000)
        assert running.read().endswith(b"[DONE]\n\n")
    pair.api.call("wake")
    pair.ask()


def test_vllm_on_a_cpu_refuses_the_flag(pair, models):
    pair.load(flags(models["tiny-opt"], "--enable-sleep-mode"))
    assert "leep" in pair.error()["message"]


# -- nobody else's death is an engine's death


def test_a_serving_pair_survives_its_agent_and_its_zygote(runtime, models):
    z = drive.Zygote(runtime.python, runtime.env, profile=runtime.profile)
    try:
        p = z.pair()
        p.load(flags(models["tiny-opt"]))
        before = p.ask()
        traces = Traces(p)
        for c in (p.engine, p.api, z.client):
            c.close()  # the agent is gone
        os.kill(z.process.pid, signal.SIGKILL)
        z.process.wait()
        assert p.ask() == before
        again = client.Client(os.path.join(p.dir, "api.sock")).hello()  # a new agent comes back
        assert (again["state"], again["placement"], again["pid"]) == ("serving", "p1", p.api_name["pid"])
        os.kill(p.engine_name["pid"], signal.SIGKILL)  # and the pair rule holds without a zygote
        ended(p.api_name)
        for n in traces.processes:
            ended(n)
        assert [x for x in traces.shm if os.path.exists(x)] == []
    finally:
        z.close()


# -- a load that cannot work says why, in one line


def broken(models, tmp_path, how):
    folder = tmp_path / "broken"
    shutil.copytree(models["tiny-opt"], folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "corrupt weights":
        weights.write_bytes(b"\xff" * 4096)
        return folder, str(weights)
    if how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-5000])
        return folder, str(weights)
    if how == "no config":
        config.unlink()
        return folder, "config.json"
    parsed = json.loads(config.read_text())
    config.write_text(json.dumps({**parsed, "architectures": ["NoSuchForCausalLM"], "model_type": "opt"}))
    return folder, "NoSuchForCausalLM"


@pytest.mark.parametrize("how", ["corrupt weights", "truncated weights", "no config", "unknown architecture"])
def test_a_broken_model_is_named_in_one_line(pair, models, tmp_path, how):
    folder, thing = broken(models, tmp_path, how)
    pair.load(flags(str(folder)))
    e = pair.error()
    assert e["code"] == "load_failed" and thing in e["message"] and str(folder) in e["message"]
    assert "\n" not in e["message"] and e["detail"]
    traces = Traces(pair)
    pair.wait_exits()
    traces.assert_gone()


def test_an_unknown_flag_is_refused_with_vllms_own_words(pair, models):
    pair.load(flags(models["tiny-opt"], "--no-such-flag"))
    assert "--no-such-flag" in pair.error()["message"]
    pair.wait_exits()


def test_what_a_parked_worker_cannot_do_is_said(pair, models):
    pair.load(flags(models["tiny-opt"], "--api-server-count", "2"))
    assert "start=cold" in pair.error()["message"]


def test_a_load_without_its_peer_or_its_socket_is_refused(pair, models):
    fields = {"placement": "p", "attempt": 1, "argv": flags(models["tiny-opt"]), "env": {}, "dir": pair.dir}
    gone = subprocess.Popen(["true"])
    n = named(gone.pid)
    gone.wait()
    with pytest.raises(client.Failed) as e:
        pair.engine.call("load", peer=n, **fields)
    assert e.value.code == "gone"
    with pytest.raises(client.Failed) as e:
        pair.api.call("load", peer=pair.engine_name, **fields)
    assert e.value.code == "bad_request"
    assert pair.engine.hello()["state"] == pair.api.hello()["state"] == "warm"


# -- traces


def test_a_parked_start_sends_vllms_spans_in_the_callers_trace(pair, models):
    collector = Collector()
    try:
        otel = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.endpoint,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "TRACEPARENT": f"00-{TRACE}-b7ad6b7169203331-01",
        }
        pair.load(flags(models["tiny-opt"]), env=otel)
        pair.ask()
        wanted = {"EngineCoreProc init", "Executor init", "Worker init", "Load model", "Load weights", "Allocate KV cache", "AsyncMPClient init"}
        assert collector.wait_for(wanted, 30) == set()
        assert {s["trace_id"] for s in collector.spans} == {TRACE}
        kinds = {s["name"]: s["resource"]["vllm.process_kind"] for s in collector.spans}
        assert (kinds["Executor init"], kinds["Load weights"], kinds["AsyncMPClient init"]) == ("engine_core", "worker", "api_server")
        roots = {s["name"] for s in collector.spans if s["parent"] == "b7ad6b7169203331"}
        assert roots == {"EngineCoreProc init", "Overall Loading"}
    finally:
        collector.close()


def test_a_collector_that_is_not_there_costs_no_request(pair, models):
    dead = socket.socket()
    dead.bind(("127.0.0.1", 0))  # bound, not listening: refused at once, and nobody else can take the port
    endpoint = f"http://127.0.0.1:{dead.getsockname()[1]}/v1/traces"
    otel = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    pair.load(flags(models["tiny-opt"]), env=otel)
    pair.ask()
    pair.api.call("drain", grace_ms=30000)
    assert pair.wait_exits()[1]["code"] == 0
    dead.close()
