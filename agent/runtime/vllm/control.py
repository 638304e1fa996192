"""JSON lines over an AF_UNIX stream socket, with file descriptors by SCM_RIGHTS.

One `Server` per zygote and per worker half; the agent is the client. The rules that keep a zygote alive:

- nothing blocks: every socket is non-blocking, the owner calls `step(timeout)` and gets back within it;
- everything is bounded: a line (1 MiB), what waits to be sent to one client (4 MiB), fds in flight, clients;
- a client that breaks a bound, or simply vanishes, is dropped; nobody else notices.

The server is used by one thread at a time. `emit` and the answer of a `Later` alone may be called from any thread.
"""

import collections
import json
import os
import select
import socket
import sys
import time
import traceback

import process

PROTO = 1
MAX_LINE = 1 << 20
MAX_OUT = 4 << 20
MAX_FDS = 4
MAX_CLIENTS = 64
_READ = 1 << 16


class Refused(Exception):
    """A request that is answered with an error; `code` is one of the protocol's error codes."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message


class Later:
    """A reply that comes when it is known. `begin(answer)` starts what finds out, and must not block; `answer`, called once,
    from any thread, takes the fields of the reply, or a Refused."""

    def __init__(self, begin):
        self.begin = begin


class Client:
    """One connection: what it sent and we have not handled, what we owe it."""

    def __init__(self, sock):
        self.sock, self.inbuf, self.outbuf, self.fds = sock, bytearray(), bytearray(), []
        self.greeted = False  # events go only to clients that said hello
        self.closing = False  # drop it once what we owe it is sent

    def take_fd(self):
        """The oldest fd this client sent that no request has used, or None."""
        return self.fds.pop(0) if self.fds else None


class Server:
    """Listens on `path`; `handler(client, msg)` returns the fields of the reply, or Later, or raises Refused."""

    def __init__(self, path, handler=None, mode=0o660):
        self.path, self.handler = path, handler
        self.clients = {}
        self._watches = {}
        self._outbox = collections.deque()
        self._wake_r, self._wake_w = process.wake_pair()
        self._deaf_until = 0.0
        self.listener = _listen(path, mode)

    # -- called by anybody

    def emit(self, event):
        """Queues an event for every client that said hello. Safe from any thread."""
        self._outbox.append((None, event))
        self.wake()

    def wake(self):
        """Makes a step() that waits in another thread return."""
        try:
            self._wake_w.send(b"e")
        except (BlockingIOError, OSError):
            pass  # the pipe is full of wake-ups already, or we are shutting down

    # -- called by the owner thread

    def watch(self, fd, callback):
        """Calls `callback()` from step() whenever fd is readable (a pidfd, a signal wake-up fd)."""
        self._watches[fd] = callback

    def unwatch(self, fd):
        self._watches.pop(fd, None)

    def step(self, timeout=None):
        """One round: waits for input at most `timeout` seconds, reads, handles, writes. Whether there was any."""
        self._deliver()
        poll = select.poll()  # no kernel state, unlike epoll: a forked child cannot disturb its parent's set
        if time.monotonic() >= self._deaf_until:
            poll.register(self.listener, select.POLLIN)
        else:
            timeout = 1 if timeout is None else min(1, timeout)
        poll.register(self._wake_r, select.POLLIN)
        for fd in self._watches:
            poll.register(fd, select.POLLIN)
        for fd, c in self.clients.items():
            poll.register(fd, (0 if c.closing else select.POLLIN) | (select.POLLOUT if c.outbuf else 0))
        ready = poll.poll(None if timeout is None else max(0, timeout * 1000))
        for fd, what in ready:
            if fd == self.listener.fileno():
                self._accept()
            elif fd == self._wake_r.fileno():
                _empty(self._wake_r)
            elif fd in self._watches:
                self._watches[fd]()
            elif fd in self.clients:
                self._serve(self.clients[fd], what)
        self._deliver()
        return bool(ready)

    def flush(self, seconds):
        """Sends what is owed, for at most `seconds`: the last words of a process that is about to end."""
        end = time.monotonic() + seconds
        self._deliver()
        while any(c.outbuf for c in self.clients.values()) and time.monotonic() < end:
            self.step(min(0.05, max(0, end - time.monotonic())))

    def close(self, unlink=True):
        """Closes every fd. A forked child closes its copy with unlink=False: the path is still its parent's."""
        for c in list(self.clients.values()):
            self._drop(c)
        for s in (self.listener, self._wake_r, self._wake_w):
            s.close()
        if unlink:
            try:
                os.unlink(self.path)
            except OSError:
                pass

    # -- inside

    def _accept(self):
        try:
            sock, _ = self.listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as e:  # out of fds: the client waits in the backlog, and we do not spin over it
            self._deaf_until = time.monotonic() + 1
            print(f"warmd: control accept: {e}", file=sys.stderr, flush=True)
            return
        if len(self.clients) >= MAX_CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        self.clients[sock.fileno()] = Client(sock)

    def _serve(self, c, what):
        try:
            if what & select.POLLOUT:
                self._write(c)
            if what & (select.POLLIN | select.POLLHUP | select.POLLERR) and not c.closing:
                self._read(c)
            elif what & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                self._drop(c)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._drop(c)

    def _read(self, c):
        data, fds, _, _ = socket.recv_fds(c.sock, _READ, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        c.fds += fds
        if not data:
            self._drop(c)
            return
        if len(c.fds) > MAX_FDS:
            self._drop(c)
            return
        c.inbuf += data
        while (cut := c.inbuf.find(b"\n")) >= 0 and not c.closing:
            line = bytes(c.inbuf[:cut])
            del c.inbuf[: cut + 1]
            self._handle(c, line)
        if len(c.inbuf) > MAX_LINE:
            c.closing = True
            self._send(c, {"id": None, **_error("bad_request", f"a line is longer than {MAX_LINE} bytes")})

    def _handle(self, c, line):
        ident = None
        try:
            if len(line) > MAX_LINE:
                raise Refused("bad_request", f"a line is longer than {MAX_LINE} bytes")
            try:
                msg = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise Refused("bad_request", f"not a JSON object: {e}") from None
            if not isinstance(msg, dict):
                raise Refused("bad_request", "not a JSON object")
            ident = msg.get("id")
            if not isinstance(msg.get("op"), str):
                raise Refused("bad_request", "op is missing")
            reply = self.handler(c, msg) or {}
            if isinstance(reply, Later):
                reply.begin(lambda fields: self._answer(c, ident, fields))
                return
            if msg["op"] == "hello":
                c.greeted = True
        except Refused as e:
            reply = _error(e.code, e.message)
        except Exception as e:  # a bug of ours must cost one request, not the zygote
            traceback.print_exc()
            reply = _error("internal", f"{type(e).__name__}: {e}")
        self._send(c, {"id": ident, **reply})

    def _answer(self, c, ident, fields):
        if isinstance(fields, Refused):
            fields = _error(fields.code, fields.message)
        self._outbox.append((c, {"id": ident, **fields}))
        self.wake()

    def _deliver(self):
        while self._outbox:
            to, message = self._outbox.popleft()
            line = _encode(message)
            for c in [c for c in self.clients.values() if (c is to if to else c.greeted)]:
                self._queue(c, line)

    def _send(self, c, message):
        self._queue(c, _encode(message))

    def _queue(self, c, line):
        if len(c.outbuf) + len(line) > MAX_OUT:  # it does not read: it is slow or broken, and no use to anybody
            self._drop(c)
            return
        c.outbuf += line
        try:
            self._write(c)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._drop(c)

    def _write(self, c):
        while c.outbuf:
            del c.outbuf[: c.sock.send(c.outbuf[:_READ], socket.MSG_NOSIGNAL)]
        if c.closing:
            self._drop(c)

    def _drop(self, c):
        if self.clients.pop(c.sock.fileno(), None) is None:
            return
        for fd in c.fds:
            os.close(fd)
        c.fds.clear()
        c.sock.close()


def _listen(path, mode):
    if len(os.fsencode(path)) > 107:  # the kernel's own message for this does not say which path
        raise OSError(f"socket path is longer than 107 bytes: {path}")
    try:
        os.unlink(path)  # a stale file of a process that was killed; a path is never shared by two owners
    except FileNotFoundError:
        pass
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o777 & ~mode)  # so that it never exists with wider permissions, not for a moment
    try:
        s.bind(path)
    except OSError as e:
        s.close()
        raise OSError(f"cannot listen on {path}: {e.strerror}") from None
    finally:
        os.umask(old)
    s.listen(128)
    s.setblocking(False)
    return s


def _encode(message):
    return json.dumps(message, separators=(",", ":"), default=str).encode() + b"\n"


def _error(code, message):
    return {"error": {"code": code, "message": message}}


def _empty(sock):
    try:
        while sock.recv(4096):
            pass
    except (BlockingIOError, InterruptedError):
        pass
