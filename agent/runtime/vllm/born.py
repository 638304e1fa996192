"""The first and the last moments of a forked worker half.

A fork happens deep inside the zygote's request handling. The child leaves it as an exception (`Born`), past everything
that catches Exception, so that it starts from the bottom of the stack like any process.
"""

import atexit
import os
import signal
import sys
import tempfile
import traceback

import cgroup


class Born(BaseException):
    """Raised in a fresh fork; `main` is what the child does from now on."""

    def __init__(self, main):
        super().__init__()
        self.main = main


def leave_home(server, sockets, log_fd, group):
    """The worker's cgroup, a new session, our own log, nothing of the zygote's left open."""
    if group:
        cgroup.join(group)  # first of all: whatever this process starts is in there with it
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    for s in sockets:
        s.close()
    server.close(unlink=False)


def half_main(zygote, server, worker, role, request, asked):
    """Becomes the parked half that the fork request describes. Returns the exit code of the process."""
    import adapter
    import half as halves

    os.environ.update({k: str(v) for k, v in request["env"].items()})
    tempfile.tempdir = None  # the zygote's answer: now there is a TMPDIR of this worker
    spec = request.get("spec") or {}
    if spec.get("cuda_visible_devices") is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(spec["cuda_visible_devices"])
    o = zygote.options
    half = halves.Half(server, zygote.adapter, worker, role, o.runtime, o.generation, spec)
    half.phase("import", zygote.began_ns, zygote.began_ns + int(zygote.import_s * 1e9), warm=True)
    half.phase("fork", asked, warm=True)
    module = sys.modules[role]  # engine.py or api.py, imported by the zygote

    def prepare(half):
        after = zygote.profile.get("after_fork", [])
        if after and spec.get("device") == "cuda":  # on the CPU platform the engine forks again: it stays clean
            began = halves.now()
            adapter.import_profile(after)
            half.phase("import", began, warm=True)
        module.prepare(half)

    try:
        return half.run(prepare, module.spare, module.main)
    finally:
        server.close()


def live(main):
    """Runs `main` and ends as a Python process ends, without tearing the interpreter down (that takes a second)."""
    code = 1
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
    signal.alarm(15)  # an exit hook that hangs must not keep a device
    try:
        atexit._run_exitfuncs()  # flushes OpenTelemetry's last spans, among others
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
