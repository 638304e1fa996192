"""Sleep and wake of a model that serves, and what its clients get meanwhile.

Sleep level 1: vLLM copies the weights to pinned host memory and gives the KV cache up; the processes, the device context
and compiled graphs stay. Level 0 only stops the scheduler: any engine can, and nothing is gained. This runs in the API half, through the engine client that serves requests: vLLM's own HTTP routes
for it are of its development mode, which warmd never turns on.

An engine that sleeps queues requests without end, so the gate turns them away before vLLM sees them:

    awake --sleep--> closed (new requests: 503; running ones may finish) --> asleep (503) --wake--> waking (they wait) --> awake

503 has a Retry-After, and not a wake-up, because who put a model to sleep gave its memory to somebody else.
"""

import asyncio
import json

from control import Refused
from half import now

RETRY_AFTER_S = 2  # what a wake-up and some patience amount to

AWAKE, CLOSED, ASLEEP, WAKING = "awake", "closed", "asleep", "waking"


class Gate:
    """One for a process. All of it runs on the server's event loop."""

    def __init__(self):
        self.state, self.running = AWAKE, 0
        self._one = asyncio.Lock()  # one sleep or wake at a time: who comes second finds it done
        self._idle, self._settled = asyncio.Event(), asyncio.Event()  # nothing runs; it is not waking
        self._idle.set(), self._settled.set()

    # -- requests of clients

    async def serve(self, app, scope, receive, send):
        """Serves one request, or turns it away. Questions (GET) are no work for the engine."""
        if scope["type"] == "lifespan" or scope.get("method") in ("GET", "HEAD", "OPTIONS"):
            return await app(scope, receive, send)
        await self._settled.wait()
        if self.state != AWAKE:
            return await _turn_away(scope, send)
        self.running += 1
        self._idle.clear()
        try:
            await app(scope, receive, send)
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    # -- requests of the agent; both return what was measured

    async def sleep(self, half, engine, level, grace_s):
        """Lets running requests finish, then has the engine sleep. Refused, and all as before, when they do not."""
        async with self._one:
            if self.state == ASLEEP:
                return {}
            if level > 0:
                _check(half, engine)
            self.state = CLOSED
            if self.running:
                try:
                    await asyncio.wait_for(self._idle.wait(), grace_s)
                except asyncio.TimeoutError:
                    self.state = AWAKE
                    raise Refused("busy", f"{self.running} requests still run after {grace_s:g} s: the model stays awake") from None
            began = now()
            try:
                await engine.sleep(level)
            except Exception as e:
                await engine.wake_up()  # it may have stopped half-way; if this fails, too, clients stay turned away
                self.state = AWAKE
                raise Refused("internal", f"vLLM does not sleep: {type(e).__name__}: {e}") from e
            self.state = ASLEEP
            half.set_state("sleeping")
            return {"start_ns": began, "dur_ns": now() - began}

    async def wake(self, half, engine):
        """Has the engine get its memory back. Requests that come meanwhile wait for it."""
        async with self._one:
            if self.state == AWAKE:
                return {}
            self.state = WAKING
            self._settled.clear()
            began = now()
            try:
                await engine.wake_up()
            except Exception as e:
                self.state = ASLEEP
                raise Refused("internal", f"vLLM does not wake: {type(e).__name__}: {e}") from e
            else:
                self.state = AWAKE
                half.set_state("serving")
                return {"start_ns": began, "dur_ns": now() - began}
            finally:
                self._settled.set()


def _check(half, engine):
    """Says why this engine cannot sleep, before anything has happened to it."""
    if half.spec.get("device") != "cuda":
        raise Refused("unsupported", f"an engine on {half.spec.get('device', 'cpu')} does not sleep: vLLM's sleep mode needs a GPU")
    if not engine.vllm_config.model_config.enable_sleep_mode:
        raise Refused("unsupported", "it was loaded without --enable-sleep-mode: place it with that argument")


async def _turn_away(scope, send):
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1013})  # try again later
    error = {"message": "the model sleeps: `warmctl wake` wakes it", "type": "service_unavailable", "param": None, "code": 503}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"retry-after", b"%d" % RETRY_AFTER_S)]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
