"""A small blocking client of the control protocol: what the agent does in Go, for the rehearsal and the tests."""

import json
import socket
import time

import control


class Failed(Exception):
    """The other end answered with an error."""

    def __init__(self, error):
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.code, self.message = error.get("code"), error.get("message")


class Client:
    """One connection. Events that arrive while a reply is awaited are kept in `events`."""

    def __init__(self, path, timeout=60):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self.sock.connect(path)
        self.timeout, self.buf, self.events, self.last_id = timeout, b"", [], 0

    def send_raw(self, data):
        self.sock.sendall(data)

    def call(self, op, fds=(), timeout=None, **fields):
        """Sends a request and waits for its reply; raises Failed when that is an error."""
        self.last_id += 1
        line = json.dumps({"id": self.last_id, "op": op, **fields}).encode() + b"\n"
        if fds:
            sent = socket.send_fds(self.sock, [line], list(fds))
            line = line[sent:]
        if line:
            self.sock.sendall(line)
        end = time.monotonic() + (timeout or self.timeout)
        while True:
            m = self.read(end)
            if "ev" in m:
                self.events.append(m)
            elif m.get("id") == self.last_id:
                if "error" in m and m["error"] and set(m) <= {"id", "error"}:
                    raise Failed(m["error"])
                return m

    def hello(self, timeout=None):
        return self.call("hello", timeout=timeout, proto=control.PROTO)

    def wait(self, want, timeout=None):
        """The first event, past or future, for which `want(event)` holds."""
        end = time.monotonic() + (timeout or self.timeout)
        for e in self.events:
            if want(e):
                return e
        while True:
            m = self.read(end)
            if "ev" in m:
                self.events.append(m)
                if want(m):
                    return m

    def read(self, end):
        """The next line, before the monotonic time `end`; EOFError when the other end closed."""
        while b"\n" not in self.buf:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"nothing from {self.sock.getpeername()} in time; events so far: {self.events[-5:]}")
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(1 << 16)
            except TimeoutError:
                continue
            if not data:
                raise EOFError("the other end closed the connection")
            self.buf += data
        line, self.buf = self.buf.split(b"\n", 1)
        return json.loads(line)

    def close(self):
        self.sock.close()
