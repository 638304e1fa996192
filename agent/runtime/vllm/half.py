"""What the two halves of a worker have in common: being parked, being told what to load, and ending together.

While parked the main thread serves the control socket and nothing else runs. At `load` a thread of ours takes the
socket over and the main thread belongs to vLLM, which insists on it for its signal handlers.
"""

import os
import sys
import threading
import time
import traceback

import control
import explain
import process

QUIET_S = 0.03  # a parked half that nobody asked anything for so long has time to spare
_DONE = object()
PAIR_LOST = 70  # exit code of a half whose other half is gone


def now():
    return time.monotonic_ns()


class Half:
    """One parked process. `role_main(half, load)` runs in the main thread once a load came."""

    def __init__(self, server, adapter, worker, role, runtime, generation, spec):
        self.server, self.adapter = server, adapter
        self.worker, self.role, self.spec = worker, role, spec
        self.runtime, self.generation = runtime, generation
        self.state, self.phases, self.error = "warm", [], None
        self.placement = self.attempt = self.load = self.drain = None
        self.rest = None  # of an API half that serves: rest(op, msg, answer) has the model sleep or wake
        self.me = process.stat(os.getpid())
        self._exit_code, self._stop, self._thread = None, False, None
        self._alone = threading.Event()
        server.handler = self._handle

    # -- reporting, from any thread

    def phase(self, name, began, ended=None, warm=False):
        """One measured piece of a start, in CLOCK_MONOTONIC nanoseconds."""
        e = {"ev": "phase", "proc": self.role, "name": name, "start_ns": began, "dur_ns": (ended or now()) - began, "warm": warm}
        self.phases.append(e)
        self.server.emit(e)

    def set_state(self, state):
        self.state = state
        self.server.emit({"ev": "state", "state": state, "t_ns": now()})

    # -- the life of a half

    def run(self, prepare, spare, role_main):
        """Prepares, parks, loads, serves. Returns the exit code of the process."""
        try:
            prepare(self)
            self._park(spare(self))
            # A worker that vLLM forks from here must not keep our sockets open: the agent could not see us end.
            os.register_at_fork(after_in_child=lambda: self.server.close(unlink=False))
            self._thread = threading.Thread(target=self._control_loop, name="warmd-control", daemon=True)
            self._thread.start()
            code = role_main(self, self.load) or 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else (1 if e.code else 0)
        except BaseException as e:
            code = self._fail(e)
        self._end_control_thread()
        return code

    def _park(self, spare):
        """Serves the control socket until a load comes. While nobody asks for anything, takes one turn of `spare` after
        the other: a load waits for one turn at most, and the rest of them is dropped."""
        while self.load is None:
            asked = self.server.step(QUIET_S if spare else None)
            self._obey()
            if spare and not asked and next(spare, _DONE) is _DONE:
                spare = None

    def _control_loop(self):
        while not self._stop:
            self.server.step(1)
            self._obey()

    def _obey(self):
        """Ends the process when a request or the peer's death asked for it, after the reply is on its way."""
        if self._exit_code is not None:
            self.server.flush(0.2)
            self.leave(self._exit_code)

    def _end_control_thread(self):
        self._stop = True
        if self._thread:
            self.server.wake()
            self._thread.join(2)
        self.server.flush(1)

    def _fail(self, exc):
        """Says in one line what went wrong; the full story goes to the log and, shortened, to the agent."""
        traceback.print_exception(exc)
        message = explain.message(exc, self.load)
        self.error = {"code": "load_failed" if self.load else "internal", "message": message}
        print(f"warmd: {self.error['code']}: {message}", file=sys.stderr, flush=True)
        self.server.emit({"ev": "error", **self.error, "detail": explain.detail(exc)})
        return 1

    def end(self, code):
        """Asks the control thread to end this process, after what it still owes its clients."""
        self._exit_code = code
        self.server.wake()

    def leave(self, code):
        """Ends this process now, from any thread, and everything it started."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.server.close()
        process.kill_session(self.me.session, spare=(os.getpid(),))
        os._exit(code)

    # -- requests

    def _handle(self, client, msg):
        op = getattr(self, "_op_" + msg["op"], None)
        if op is None:
            raise control.Refused("bad_request", f"unknown op {msg['op']!r}")
        return op(client, msg)

    def _op_hello(self, client, msg):
        if msg.get("proto") != control.PROTO:
            raise control.Refused("unsupported", f"this worker speaks protocol {control.PROTO}, not {msg.get('proto')}")
        return {
            "proto": control.PROTO,
            "worker": self.worker,
            "role": self.role,
            "pid": self.me.pid,
            "start": self.me.start,
            "runtime": self.runtime,
            "generation": self.generation,
            "state": self.state,
            "placement": self.placement,
            "attempt": self.attempt,
            "caps": ["drain", "sleep"] if self.role == "api" else [],
            "phases": list(self.phases),
            "error": self.error,
        }

    def _op_load(self, client, msg):
        for field, kind in (("placement", str), ("attempt", int), ("argv", list), ("dir", str), ("peer", dict)):
            if not isinstance(msg.get(field), kind):
                raise control.Refused("bad_request", f"load needs {field}")
        if (msg["placement"], msg["attempt"]) == (self.placement, self.attempt):
            return {}
        if self.state != "warm":
            raise control.Refused("bad_state", f"this half is {self.state} with placement {self.placement}")
        if len(os.fsencode(msg["dir"])) > 100:  # ipc://DIR/out is a socket path of at most 107 bytes
            raise control.Refused("bad_request", f"dir is longer than 100 bytes: {msg['dir']}")
        if self.role == "api" and not client.fds:
            raise control.Refused("bad_request", "load of the API half needs one listening socket")
        self._watch_peer(msg["peer"])
        if self.role == "api":
            msg["listen_fd"] = client.take_fd()
        self.placement, self.attempt = msg["placement"], msg["attempt"]
        msg["began_ns"] = now()
        self.set_state("loading")
        self.load = msg
        return {}

    def _watch_peer(self, peer):
        """From the load on, one half never outlives the other, with or without a zygote."""
        try:
            fd = process.open_pidfd(peer["pid"], peer["start"])
        except (ProcessLookupError, KeyError, TypeError):
            raise control.Refused("gone", f"the other half, {peer}, is not there") from None

        def gone():
            print(f"warmd: the other half (pid {peer['pid']}) is gone: ending", file=sys.stderr, flush=True)
            if process.start_time(peer["pid"]) in (0, peer["start"]):  # nobody else has that pid as its session by now
                process.kill_session(peer["pid"])
            self._exit_code = PAIR_LOST
            self._alone.set()
            self.server.unwatch(fd)

        self.server.watch(fd, gone)

    def await_peer(self, seconds):
        """Waits for the other half to end, and this one with it: whoever ends first is taken for the cause."""
        return self._alone.wait(seconds)

    def _op_drain(self, client, msg):
        if self.role != "api":
            raise control.Refused("bad_request", "drain is for the API half")
        if self.state == "draining":
            return {}
        serving = self.state == "serving"
        self.set_state("draining")
        if not (serving and self.drain and self.drain(msg.get("grace_ms", 0))):
            self._exit_code = 0  # nothing runs yet
        return {}

    def _op_stop(self, client, msg):
        self._exit_code = 0
        return {}

    def _op_stats(self, client, msg):
        return process.usage()

    def _op_modules(self, client, msg):
        return {"modules": list(sys.modules)}

    def _op_sleep(self, client, msg):
        if self.role != "api":
            raise control.Refused("bad_request", f"{msg['op']} is for the API half")
        if self.state not in ("serving", "sleeping") or self.rest is None:
            raise control.Refused("bad_state", f"this half is {self.state}")
        if msg.get("level", 1) not in (0, 1):  # 2 forgets the weights: nobody could wake it
            raise control.Refused("bad_request", f"no such level of sleep: {msg['level']!r}")
        return control.Later(lambda answer: self.rest(msg["op"], msg, answer))

    _op_wake = _op_sleep

    def _op_ping(self, client, msg):
        return {}


def apply_env(load):
    """The load's environment, before vLLM reads any of it."""
    if any(str(a).split("=")[0].replace("_", "-") == "--kv-cache-memory-bytes" for a in load.get("argv", [])):
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # vLLM would let it win over the flag: runtime.FlagsWin
    os.environ.update({k: str(v) for k, v in (load.get("env") or {}).items()})
    os.environ.pop("VLLM_SERVER_DEV_MODE", None)  # never, whoever set it: its endpoints run code for every client
    if os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        # The SDK's default of 5 s is as long as a whole parked start: the agent would see the phases long after it.
        os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", "200")
