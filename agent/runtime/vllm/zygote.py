#!/usr/bin/env python3
"""The zygote: imports a whole vLLM once, then forks parked workers in milliseconds. One per runtime on a node.

    PY zygote.py --socket S --runtime NAME --generation N --kind vllm|exec [--profile profile.json] [--manifest runtime.json] [--cgroups]

It has one thread of its own, always, and never touches CUDA: process.fork_hazards says why. That is checked before every
fork, and a failed check is fatal, because a worker that hangs one time in a thousand is worse than no zygote.

With `--kind exec` no vLLM is imported and nothing is forked: it only starts and supervises command lines.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time

import born
import cgroup
import control
import process
from children import PAIR, Children
from control import Refused

FATAL = 71


class Zygote:
    def __init__(self, options):
        self.options = options
        self.manifest = _read_json(options.manifest)
        self.profile = _read_json(options.profile)
        self.adapter, self.import_s, self.profile_modules = None, 0.0, 0
        self.began_ns = time.monotonic_ns()
        self.me = process.stat(os.getpid())
        self.running = True
        self.cgroups = cgroup.Tree.own() if options.cgroups else None
        self.server = control.Server(options.socket, self._handle)  # before the imports: a connect then simply waits
        self.children = Children(self.server.emit)
        self._catch_sigchld()

    # -- start

    def warm(self):
        """All imports; a connect meanwhile waits for its hello."""
        began = time.monotonic()
        if self.options.kind == "vllm":
            import adapter
            import shortcuts

            self.adapter = adapter.Adapter()
            count, failed, seconds = adapter.import_profile(self.profile.get("modules", []))
            self.profile_modules = count
            for name, why in failed.items():
                print(f"warmd: profile: {name}: {why}", file=sys.stderr)
            print(f"warmd: profile: {count} modules in {seconds:.2f} s, {len(failed)} failed", file=sys.stderr)
            for why in shortcuts.install(self.adapter.platform):
                print(f"warmd: this vLLM starts without a shortcut: {why}", file=sys.stderr)
        self.import_s = round(time.monotonic() - began, 3)
        self.check_clean()
        gc.collect()
        gc.freeze()  # the collector of a child never touches, and so never copies, what the zygote made
        print(f"warmd: zygote ready in {self.import_s} s, {len(sys.modules)} modules", file=sys.stderr, flush=True)

    def check_clean(self):
        """Dies, with names, when a fork would not be safe."""
        hazards = process.fork_hazards()
        if hazards:
            _die(f"a fork of the zygote would not be safe: {', '.join(hazards)}")

    def _catch_sigchld(self):
        self._child_r, self._child_w = process.wake_pair()
        signal.set_wakeup_fd(self._child_w.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler must exist for the wake-up fd to be written
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self.server.watch(self._child_r.fileno(), self._reap)

    def _reap(self):
        control._empty(self._child_r)
        self.children.reap()

    # -- loop

    def run(self):
        """Serves until `stop`; in a forked child it ends with born.Born."""
        self.children.reap()
        while self.running:
            self.server.step()
        self.children.reap()  # who asked us to end has seen ours die, perhaps before us: nobody else removes their folders
        self.server.flush(1)
        self.server.close()

    def _handle(self, client, msg):
        op = getattr(self, "_op_" + msg["op"], None)
        if op is None:
            raise Refused("bad_request", f"unknown op {msg['op']!r}")
        return op(msg)

    def _op_hello(self, msg):
        if msg.get("proto") != control.PROTO:
            raise Refused("unsupported", f"this zygote speaks protocol {control.PROTO}, not {msg.get('proto')}")
        return {
            "proto": control.PROTO,
            "kind": self.options.kind,
            "engine": "vllm" if self.adapter else self.manifest.get("engine", ""),
            "version": self.adapter.version if self.adapter else self.manifest.get("version", ""),
            "pid": self.me.pid,
            "start": self.me.start,
            "runtime": self.options.runtime,
            "generation": self.options.generation,
            "python": sys.executable,
            "caps": ["fork", "spawn", "kill"] if self.adapter else ["spawn", "kill"],
            "import_s": self.import_s,
            "profile_modules": self.profile_modules,
            "children": self.children.listing(),
            "exits": list(self.children.exits),
        }

    def _op_children(self, msg):
        return {"children": self.children.listing()}

    def _op_ping(self, msg):
        return {}

    def _op_stop(self, msg):
        self.running = False
        return {}

    def _op_kill(self, msg):
        pid, start = _ints(msg, "pid", "start")
        sig = msg.get("signal", 9)
        if not isinstance(sig, int) or not 0 <= sig <= 64:
            raise Refused("bad_request", f"no such signal: {sig!r}")
        try:
            self.children.signal(pid, start, sig)
        except ProcessLookupError:
            raise Refused("gone", f"process {pid} started at {start} is not there any more") from None
        except PermissionError as e:
            raise Refused("bad_request", str(e)) from None
        return {}

    def _op_spawn(self, msg):
        worker, role = _strings(msg, "worker", "role")
        argv, env, cwd = msg.get("argv"), msg.get("env"), msg.get("cwd")
        if not (isinstance(argv, list) and argv and all(isinstance(a, str) for a in argv)):
            raise Refused("bad_request", "spawn needs argv, a list of strings")
        if not isinstance(env, dict):
            raise Refused("bad_request", "spawn needs env, the whole environment")
        self._refuse_twice(worker, role)
        group = self.cgroups and self.cgroups.worker(worker)
        with _open_log(msg) as log:
            env = {**{k: str(v) for k, v in env.items()}, "TMPDIR": self._temp(worker, env)}
            try:
                p = subprocess.Popen(
                    argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, preexec_fn=(lambda: cgroup.join(group)) if group else None,
                )
            except (OSError, ValueError) as e:
                if group:
                    cgroup.clear(group)
                self.children.clear(worker)
                raise Refused("bad_request", f"cannot start {argv[0]}: {e}") from None
        return self.children.add(p.pid, worker, role, popen=p, group=group)

    def _op_fork(self, msg):
        if self.adapter is None:
            raise Refused("unsupported", "a zygote of kind exec does not fork: use spawn")
        worker, role, path = _strings(msg, "worker", "role", "socket")
        if role not in PAIR:
            raise Refused("bad_request", f"fork makes an engine or an api, not {role!r}")
        self._refuse_twice(worker, role)
        self.check_clean()
        asked = time.monotonic_ns()
        group = self.cgroups and self.cgroups.worker(worker)
        env = msg.get("env") or {}
        with _open_log(msg) as log:
            msg["env"] = {**env, "TMPDIR": self._temp(worker, {**os.environ, **env})}
            try:
                server = control.Server(path)  # made here, so that a connect right after our reply finds it
            except OSError as e:
                self.children.clear(worker)
                raise Refused("bad_request", str(e)) from None
            sys.stdout.flush()
            sys.stderr.flush()
            try:
                pid = os.fork()
            except OSError as e:
                server.close()
                self.children.clear(worker)
                raise Refused("internal", f"cannot fork: {e}") from None
            if pid == 0:
                born.leave_home(self.server, (self._child_r, self._child_w), log.fileno(), group)
                raise born.Born(lambda: born.half_main(self, server, worker, role, msg, asked))
        server.close(unlink=False)
        if group:
            cgroup.join(group, pid)  # it does so itself, too; whoever hears of it now must find it there
        return self.children.add(pid, worker, role, socket=path, group=group)

    def _temp(self, worker, env):
        try:
            return self.children.temp(worker, env)
        except OSError as e:
            raise Refused("bad_request", f"cannot make a folder for temporary files (TMPDIR): {e}") from None

    def _refuse_twice(self, worker, role):
        if self.children.find(worker, role):
            raise Refused("bad_state", f"worker {worker} already has a {role}")

def _ints(msg, *names):
    values = [msg.get(n) for n in names]
    if not all(isinstance(v, int) and v > 0 for v in values):
        raise Refused("bad_request", f"{msg['op']} needs {', '.join(names)}")
    return values


def _strings(msg, *names):
    values = [msg.get(n) for n in names]
    if not all(isinstance(v, str) and v for v in values):
        raise Refused("bad_request", f"{msg['op']} needs {', '.join(names)}")
    return values


def _open_log(msg):
    path = msg.get("log") or os.devnull
    try:
        return open(path, "ab", buffering=0)
    except (OSError, TypeError) as e:
        raise Refused("bad_request", f"cannot open the log: {e}") from None


def _read_json(path):
    if not path:
        return {}
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError) as e:
        _die(f"cannot read {path}: {e}")


def _die(message):
    print(f"warmd: zygote: {message}", file=sys.stderr, flush=True)
    os._exit(FATAL)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--socket", required=True)
    p.add_argument("--runtime", required=True)
    p.add_argument("--generation", type=int, required=True)
    p.add_argument("--kind", choices=("vllm", "exec"), required=True)
    p.add_argument("--profile")
    p.add_argument("--manifest")
    p.add_argument("--cgroups", action="store_true", help="our cgroup is ours to divide: one for each worker")
    options = p.parse_args()
    # Before numpy: OpenBLAS starts its threads at import. Our folder leaves sys.path so that `api` or `engine` of some
    # other package are never shadowed; our own modules are imported by then, or are found in sys.modules.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if options.kind == "vllm":
        import adapter, api, engine, explain, half, shortcuts  # noqa: F401
    sys.path[:] = [x for x in sys.path if os.path.abspath(x or ".") != os.path.dirname(os.path.abspath(__file__))]
    process.become_subreaper()
    z = Zygote(options)
    try:
        z.warm()
    except Exception as e:
        import traceback

        traceback.print_exc()
        _die(f"{type(e).__name__}: {e}")
    try:
        z.run()
        return
    except born.Born as b:
        child_main = b.main
    born.live(child_main)  # outside the except clause: the child keeps nothing of its parent's stack alive


if __name__ == "__main__":
    main()
