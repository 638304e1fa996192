"""The parked engine half: EngineCore and, for one device, the model itself.

vLLM starts an engine with a handshake against its launcher: HELLO, then the addresses of the API server's sockets,
then READY. Here a thread of the same process plays the launcher, so that engine and API server are joined by nothing
but the ipc paths in the load's `dir`, and may start in any order.
"""

import json
import os
import sys
import threading
import time

import half as halves
import kernels
import shortcuts
from half import now


def prepare(half):
    """What can be done before a model is known. Runs in the fresh fork, while the half is not yet announced as warm."""
    if half.spec.get("device") != "cuda":
        return  # the CPU platform forks its worker from here: no threads, no OpenMP before that
    began = now()
    import torch

    if torch.cuda._is_in_bad_fork():
        raise RuntimeError("CUDA was initialised in the zygote: its import profile needs a new rehearsal")
    half.adapter.platform.set_device(torch.device("cuda:0"))
    torch.zeros(1, device="cuda:0")
    torch.cuda.synchronize()
    half.phase("device_init", began, warm=True)


def spare(half):
    """What it does while it is parked and nobody asks for it, one turn at a time."""
    if half.spec.get("device") == "cuda":
        return kernels.steps()


def main(half, load):
    """Loads the model and serves until told otherwise. Only returns or raises when it is over."""
    v = half.adapter
    halves.apply_env(load)

    began = now()
    args = v.parse(load["argv"])
    half.phase("parse", began)

    began = now()
    engine_args = v.engine_args(args)
    config = v.create_config(engine_args)
    half.phase("config", began)

    if half.spec.get("device") == "cuda":
        # One device, one process: its process group need not ask the network which address this host has (0.1 s).
        os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
        shortcuts.beside("tokenizer", lambda: shortcuts.load_tokenizer(config))
    else:
        # The CPU platform wants its worker in a process of its own, and while building the config sets `spawn`, which
        # would import everything again (6 s). This process is as clean as a fresh one: fork (50 ms).
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        os.register_at_fork(after_in_child=_forget_tracer)
        if folder := os.environ.get("WARMD_RECORD"):
            os.register_at_fork(after_in_child=lambda: _record_imports(folder))
        # Not before the fork, whose child would inherit a lock that the thread holds.
        os.register_at_fork(after_in_parent=lambda: shortcuts.beside("tokenizer", lambda: shortcuts.load_tokenizer(config)))

    address = f"ipc://{load['dir']}/hs"
    ready = threading.Thread(target=_launcher, args=(half, load["dir"], address, now()), name="warmd-launcher", daemon=True)
    ready.start()
    v.EngineCoreProc.run_engine_core(
        dp_rank=0,
        local_dp_rank=0,
        vllm_config=config,
        local_client=True,
        handshake_address=address,
        executor_class=v.Executor.get_class(config),
        log_stats=not engine_args.disable_log_stats,
    )


def _launcher(half, folder, address, began):
    """The launcher's part of the handshake (vllm.v1.engine.utils.wait_for_engine_startup does the same)."""
    import msgspec
    import zmq

    v = half.adapter
    addresses = v.Addresses(inputs=[f"ipc://{folder}/in"], outputs=[f"ipc://{folder}/out"])
    with zmq.Context() as ctx, ctx.socket(zmq.ROUTER) as s:
        s.linger = 0
        s.bind(address)
        while True:
            identity, raw = s.recv_multipart()
            status = msgspec.msgpack.decode(raw).get("status")
            if status == "HELLO":
                reply = v.Handshake(addresses=addresses, parallel_config={})
                s.send_multipart((identity, msgspec.msgpack.encode(reply)))
                half.phase("handshake", began)
                began = now()
            elif status == "READY":
                half.phase("engine_init", began)
                half.set_state("serving")
                return


def _forget_tracer():
    """In a forked vLLM worker: lets it make a tracer of its own, as a spawned one would.

    OpenTelemetry takes one provider per process, once; the fork inherits the engine's, and its spans would carry the
    engine's name. Private names, so: guarded, and the only loss is a wrong process name.
    """
    trace = sys.modules.get("opentelemetry.trace")
    try:
        if trace is not None and trace._TRACER_PROVIDER is not None:
            trace._TRACER_PROVIDER = None
            trace._TRACER_PROVIDER_SET_ONCE = type(trace._TRACER_PROVIDER_SET_ONCE)()
    except AttributeError:
        pass


def _record_imports(folder):
    """In a forked vLLM worker, in a rehearsal: writes down what it has imported, for nobody can ask it."""

    def write():
        path = os.path.join(folder, f"{os.getpid()}.json")
        while True:
            with open(path + ".part", "w", encoding="utf-8") as f:
                json.dump(list(sys.modules), f)
            os.replace(path + ".part", path)
            time.sleep(0.2)

    threading.Thread(target=write, name="warmd-record", daemon=True).start()
