"""Plays the agent: starts a zygote, parks pairs, loads models. For the rehearsal and the tests; Go does it in service."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import cgroup
import client
import process

HERE = os.path.dirname(os.path.abspath(__file__))

# Flags under which a random model answers quickly and always the same, on a CPU as on a GPU.
SMALL = ["--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4"]


class ZygoteDied(Exception):
    pass


class Zygote:
    """A zygote process of our own, with everything it makes in one folder that `close` removes."""

    def __init__(self, python, env, kind="vllm", profile=None, manifest=None, timeout=600, group=None):
        self.dir = tempfile.mkdtemp(prefix="warmd-")
        self.log, self.socket = os.path.join(self.dir, "zygote.log"), os.path.join(self.dir, "z.sock")
        argv = [python, os.path.join(HERE, "zygote.py"), "--socket", self.socket, "--runtime", "test", "--generation", "1"]
        argv += ["--kind", kind, *(["--profile", profile] if profile else []), *(["--manifest", manifest] if manifest else [])]
        argv += ["--cgroups"] if group else []
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                argv, env={**env, "TMPDIR": self.dir}, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
                preexec_fn=(lambda: cgroup.join(group)) if group else None,
            )
        self.children, self.pairs = [], 0
        try:
            self.client = self._connect(timeout)
            self.hello = self.client.hello(timeout)
        except (EOFError, ConnectionError, TimeoutError, ZygoteDied) as e:
            self.process.kill()
            self.process.wait()
            said = tail(self.log)
            shutil.rmtree(self.dir, ignore_errors=True)
            raise ZygoteDied(f"the zygote did not come up ({e or type(e).__name__}): {said}") from None

    def _connect(self, timeout):
        end = time.monotonic() + timeout
        while True:  # until Python has started and bound the socket
            try:
                return client.Client(self.socket)
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None or time.monotonic() > end:
                    raise ZygoteDied(f"exit code {self.process.returncode}") from None
                select_a_moment()

    def pair(self, device="cpu"):
        self.pairs += 1
        p = Pair(self, f"w{self.pairs}", device)
        self.children += [p.engine_name, p.api_name]
        return p

    def close(self):
        """Kills the zygote and everything it forked, waits for their end and removes the folder."""
        for n in self.children:
            try:
                process.send(n["pid"], n["start"], signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.kill_session(n["pid"])
        self.client.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


class Pair:
    """One worker: a parked engine and a parked API server."""

    def __init__(self, zygote, name, device="cpu"):
        self.zygote, self.name = zygote, name
        self.dir = os.path.join(zygote.dir, name)
        os.makedirs(self.dir)
        self.engine_name, self.engine = self._fork("engine", device)
        self.api_name, self.api = self._fork("api", device)
        self.port = None

    def _fork(self, role, device):
        path = os.path.join(self.dir, role + ".sock")
        named = self.zygote.client.call(
            "fork", worker=self.name, role=role, socket=path, log=self.log(role), env={}, spec={"device": device}
        )
        c = client.Client(path)
        c.hello()
        return {k: named[k] for k in ("pid", "start")}, c

    def log(self, role):
        return os.path.join(self.dir, role + ".log")

    def load(self, argv, env=None, placement="p1", attempt=1):
        """Opens the listening socket as the agent does, and sends the load to both halves."""
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        self.port = listener.getsockname()[1]
        argv = [*argv, "--host", "127.0.0.1", "--port", str(self.port)]
        fields = {"placement": placement, "attempt": attempt, "argv": argv, "env": env or {}, "dir": self.dir}
        self.engine.call("load", peer=self.api_name, **fields)
        self.api.call("load", fds=[listener.fileno()], peer=self.engine_name, **fields)
        listener.close()

    def ask(self, **fields):
        return ask(self.port, **fields)

    def kill(self):
        """Kills the API half; the pair rule kills the other. Returns both exit events."""
        self.zygote.client.call("kill", **self.api_name)
        return self.wait_exits()

    def wait_exits(self):
        """The exit events of (engine, api)."""
        ends = [(n["pid"], n["start"]) for n in (self.engine_name, self.api_name)]
        return [self.zygote.client.wait(lambda e, end=end: e["ev"] == "exit" and (e["pid"], e["start"]) == end) for end in ends]

    def error(self):
        """The error event that one of the halves sent, whichever comes."""
        for c in (self.engine, self.api):
            try:
                return c.wait(lambda e: e["ev"] == "error")
            except EOFError:
                continue
        raise AssertionError(f"no error event; engine log: {tail(self.log('engine'))}")


def post(port, prompt="Hello my name is", tokens=8, path="/v1/completions", timeout=300, **fields):
    """Asks for one greedy completion of so many tokens; the open answer."""
    body = {"model": "m", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **fields}
    if path == "/v1/completions":
        body["prompt"] = prompt
    else:
        body["messages"] = [{"role": "user", "content": prompt}]
    r = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(r, timeout=timeout)


def ask(port, stream=False, **fields):
    """One greedy completion; the text. The fields are those of post."""
    with post(port, stream=stream, **fields) as answer:
        if stream:
            chunks = [line[6:] for line in answer if line.startswith(b"data: {")]
            return "".join(json.loads(c)["choices"][0]["text"] for c in chunks)
        choice = json.load(answer)["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def tail(path, size=2000):
    try:
        with open(path, errors="replace") as f:
            return f.read()[-size:].strip()
    except OSError as e:
        return f"({e})"


def select_a_moment():
    time.sleep(0.01)  # for the one thing that nobody can tell us: that a fresh process has bound its socket


if __name__ == "__main__":  # drive.py MODEL [N]: N parked starts with this Python and this environment, timed
    z = Zygote(sys.executable, dict(os.environ), profile=os.environ.get("WARMD_PROFILE"))
    try:
        print(json.dumps({k: z.hello[k] for k in ("version", "import_s", "profile_modules")}), flush=True)
        for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 1):
            p = z.pair()
            began = time.monotonic()
            p.load(["--model", sys.argv[1], "--served-model-name", "m", *SMALL])
            try:
                text, took = p.ask(), time.monotonic() - began
            except (OSError, urllib.error.URLError) as e:
                print(tail(p.log("engine")), tail(p.log("api")), sep="\n----\n")
                raise SystemExit(f"failed: {e}")
            p.engine.call("ping"), p.api.call("ping")
            phases = {f"{e['proc']}.{e['name']}": round(e["dur_ns"] / 1e9, 3) for c in (p.engine, p.api) for e in c.events if e["ev"] == "phase"}
            print(json.dumps({"parked_s": round(took, 3), "text": text, **phases}), flush=True)
            p.kill()
    finally:
        z.close()
