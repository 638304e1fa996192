"""The parked API half: vLLM's OpenAI server on a listening socket that the agent opened long before.

Clients queue in the socket's backlog from the moment of the request, so nobody polls and nobody is refused.
"""

import asyncio
import socket
import threading

import half as halves
import shortcuts
import sleeping
from control import Refused
from half import now

LAST_WORDS_S = 3  # for a dying engine, whose words say more than that its server is left alone


class Door:
    """ASGI middleware (vLLM's --middleware flag): every request comes by, so it gets hold of the uvicorn server, for
    drain, and of the engine client, for sleep.

    vLLM's own SIGTERM handling stops the engine client first and so cuts running requests short; uvicorn's
    `should_exit` closes the listener, lets running requests finish and then returns.
    """

    server = engine = None
    gate = None

    def __init__(self, app):
        self.app = app
        Door.gate = sleeping.Gate()

    async def __call__(self, scope, receive, send):
        if Door.server is None and "app" in scope:
            state = scope["app"].state
            Door.server, Door.engine = getattr(state, "server", None), getattr(state, "engine_client", None)
        await Door.gate.serve(self.app, scope, receive, send)


def prepare(half):
    """Nothing to do before a model is known: this half needs no device."""


def spare(half):
    """Nothing for the time while it is parked either."""


def main(half, load):
    """Serves the model on the agent's socket until drained."""
    import uvloop

    v = half.adapter
    halves.apply_env(load)
    sock = socket.socket(fileno=load["listen_fd"])

    began = now()
    args = v.parse(load["argv"])
    v.prepare_server(args)
    args.middleware = [*(args.middleware or []), f"{__name__}.Door"]
    half.phase("parse", began)
    v.start_tracing("api_server", "APIServer", args)

    threading.Thread(target=_announce, args=(half, _dial(sock), now()), name="warmd-announce", daemon=True).start()
    shortcuts.beside("chat-template", lambda: shortcuts.load_processor(args))
    shortcuts.build_app(v.server, args)
    half.drain = lambda grace_ms: _drain(half, loop_box, grace_ms)
    half.rest = lambda op, msg, answer: _rest(half, loop_box, op, msg, answer)
    loop_box = []

    async def serve():
        loop_box.append(asyncio.get_running_loop())
        await v.run_server_worker(
            f"warmd socket {sock.getsockname()}",
            sock,
            args,
            client_config={
                "input_address": f"ipc://{load['dir']}/in",
                "output_address": f"ipc://{load['dir']}/out",
                "client_count": 1,
                "client_index": 0,
            },
        )

    uvloop.run(serve())  # returns after a drain, after a SIGTERM, and when the engine has said that it is dead
    if half.state in ("serving", "sleeping") and not half.await_peer(LAST_WORDS_S):
        raise RuntimeError("the server ended, and nobody asked for it")


def _dial(sock):
    """A client connection to our own listening socket, made before anybody serves it."""
    address = sock.getsockname()
    c = socket.socket(sock.family, socket.SOCK_STREAM)
    if sock.family == socket.AF_INET and address[0] == "0.0.0.0":
        address = ("127.0.0.1", address[1])
    elif sock.family == socket.AF_INET6 and address[0] == "::":
        address = ("::1", address[1])
    c.connect(address)
    return c


def _announce(half, conn, began):
    """Waits, in the backlog like any client, for the first answer of the server: then it serves.

    Anything counts as an answer, so that TLS (which answers our plain HTTP with an alert) needs no case of its own.
    """
    with conn:
        try:
            conn.sendall(b"GET /health HTTP/1.1\r\nHost: warmd\r\nConnection: close\r\n\r\n")
            conn.recv(1)
        except OSError:
            pass
    if half.state == "loading":
        half.phase("app_build", began)
        half.set_state("serving")


def _drain(half, loop_box, grace_ms):
    """Stops accepting and lets running requests finish, for at most grace_ms. False when nothing serves yet."""
    server = Door.server
    if server is None or not loop_box:
        return False

    loop_box[0].call_soon_threadsafe(lambda: setattr(server, "should_exit", True))
    if grace_ms and grace_ms > 0:
        timer = threading.Timer(grace_ms / 1000, half.end, (0,))
        timer.daemon = True
        timer.start()
    return True


def _rest(half, loop_box, op, msg, answer):
    """Runs sleep or wake on the server's loop; called by the control thread, once the half serves."""
    if Door.engine is None:
        return answer(Refused("unsupported", f"vLLM {half.adapter.version} does not show its engine client to middleware"))

    def told(future):
        e = future.exception()
        if e is None:
            return answer(future.result())
        answer(e if isinstance(e, Refused) else Refused("internal", f"{op}: {type(e).__name__}: {e}"))

    if op == "sleep":
        job = Door.gate.sleep(half, Door.engine, msg.get("level", 1), msg.get("grace_ms", 0) / 1000)
    else:
        job = Door.gate.wake(half, Door.engine)
    asyncio.run_coroutine_threadsafe(job, loop_box[0]).add_done_callback(told)
