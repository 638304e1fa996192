"""The control socket: what it promises to a client, and what a bad client can not do to it."""

import json
import os
import socket
import stat
import threading

import control
import pytest


@pytest.fixture
def server(tmp_path):
    later = []

    def handler(client, msg):
        if msg["op"] == "fail":
            raise control.Refused("bad_state", "no")
        if msg["op"] == "later":
            return control.Later(later.append)
        if msg["op"] == "bug":
            raise KeyError("oops")
        if msg["op"] == "fd":
            fd = client.take_fd()
            return {"got": fd is not None and os.close(fd) is None}
        return {"echo": msg.get("x")}

    s = control.Server(str(tmp_path / "s"), handler)
    s.later = later
    yield s
    s.close()


class Peer:
    def __init__(self, server):
        self.server, self.buf = server, b""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(server.path)
        self.sock.setblocking(False)

    def say(self, raw):
        self.sock.send(raw)

    def op(self, op, ident=1, **more):
        self.say(json.dumps({"id": ident, "op": op, **more}).encode() + b"\n")

    def hear(self):
        """The next line; None when the server closed. Turns the server's crank meanwhile."""
        for _ in range(1000):
            if b"\n" in self.buf:
                line, self.buf = self.buf.split(b"\n", 1)
                return json.loads(line)
            self.server.step(0.01)
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                continue
            except ConnectionError:
                return None
            if not data:
                return None
            self.buf += data
        raise AssertionError("no answer")


def test_a_reply_carries_the_id_of_its_request(server):
    p = Peer(server)
    p.op("a", 7, x="y")
    assert p.hear() == {"id": 7, "echo": "y"}


def test_requests_sent_at_once_are_answered_in_order(server):
    p = Peer(server)
    p.say(b"".join(b'{"id":%d,"op":"a"}\n' % i for i in range(50)))
    assert [p.hear()["id"] for _ in range(50)] == list(range(50))


def test_a_line_in_pieces_is_one_request(server):
    p = Peer(server)
    for piece in (b'{"id":1,', b'"op":"a","x"', b':"\xc3', b'\xa9"}\n'):
        p.say(piece)
        server.step(0.01)
    assert p.hear()["echo"] == "\u00e9"


def test_a_refusal_has_code_and_message(server):
    p = Peer(server)
    p.op("fail")
    assert p.hear()["error"] == {"code": "bad_state", "message": "no"}


def test_a_reply_may_come_later_from_another_thread_and_holds_nobody_up(server):
    p, other = Peer(server), Peer(server)
    p.op("later", 1)
    p.op("later", 2)
    p.op("a", 3, x="z")
    assert p.hear() == {"id": 3, "echo": "z"}
    first, second = server.later
    t = threading.Thread(target=lambda: [second(control.Refused("busy", "not now")), first({"n": 1})])
    t.start()
    t.join()
    assert p.hear() == {"id": 2, "error": {"code": "busy", "message": "not now"}}
    assert p.hear() == {"id": 1, "n": 1}
    p.op("later", 4)
    other.op("a", 5)
    assert other.hear()["id"] == 5
    p.sock.close()
    server.later[-1]({})  # its client is gone: nothing happens
    other.op("a", 6)
    assert other.hear()["id"] == 6


def test_a_bug_costs_one_request_and_not_the_server(server, capfd):
    p = Peer(server)
    p.op("bug")
    p.op("a", 2)
    assert p.hear()["error"]["code"] == "internal"
    assert p.hear()["id"] == 2


@pytest.mark.parametrize("junk", [b"\x00\xff\xfe\n", b"[]\n", b"7\n", b"\n", b'{"id":1}\n', b'{"op":5}\n', b"[" * 100000 + b"\n"])
def test_garbage_is_refused_and_the_connection_goes_on(server, junk):
    p = Peer(server)
    p.say(junk)
    assert p.hear()["error"]["code"] == "bad_request"
    p.op("a", 2)
    assert p.hear()["id"] == 2


def test_an_endless_line_is_refused_and_its_client_dropped(server):
    p = Peer(server)
    for _ in range(200):
        try:
            p.say(b"x" * 32768)
        except (BlockingIOError, ConnectionError):
            pass
        server.step(0.001)
        if not server.clients:
            break
    heard = p.hear()
    assert heard["error"]["code"] == "bad_request" and "longer" in heard["error"]["message"]
    assert not server.clients


def test_a_client_that_does_not_read_is_dropped_and_others_are_served(server):
    slow, quick = Peer(server), Peer(server)
    slow.op("hello")
    quick.op("hello")
    assert quick.hear() and slow.hear()
    for i in range(200):
        server.emit({"ev": "log", "n": i, "text": "x" * 65536})
        assert quick.hear()["n"] == i
    assert len(server.clients) == 1, "the slow client still holds memory"


def test_a_client_that_vanishes_is_forgotten(server):
    p = Peer(server)
    p.op("a")
    p.hear()
    p.sock.close()
    for _ in range(5):
        server.step(0.01)
    assert not server.clients


def test_events_go_only_to_clients_that_said_hello(server):
    greeted, silent = Peer(server), Peer(server)
    greeted.op("hello")
    greeted.hear()
    server.emit({"ev": "state", "state": "warm"})
    assert greeted.hear() == {"ev": "state", "state": "warm"}
    silent.op("a", 9)
    assert silent.hear()["id"] == 9  # the first thing it hears


def test_a_file_descriptor_arrives_with_its_line(server):
    p = Peer(server)
    with open(os.devnull) as f:
        socket.send_fds(p.sock, [b'{"id":1,"op":"fd"}\n'], [f.fileno()])
        assert p.hear()["got"] is True
    p.op("fd", 2)
    assert p.hear()["got"] is False


def test_fds_that_nobody_takes_are_bounded_and_closed(server):
    before = len(os.listdir("/proc/self/fd"))
    p = Peer(server)
    with open(os.devnull) as f:
        for _ in range(control.MAX_FDS + 1):
            try:
                socket.send_fds(p.sock, [b'{"id":1,"op":"a"}\n'], [f.fileno()])
            except ConnectionError:
                break
            server.step(0.01)
    for _ in range(10):
        server.step(0.001)
    assert not server.clients
    p.sock.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_too_many_clients_are_turned_away_at_the_door(server):
    peers = []
    for _ in range(control.MAX_CLIENTS + 1):
        peers.append(Peer(server))
        server.step(0.01)
    assert len(server.clients) == control.MAX_CLIENTS
    assert peers[-1].hear() is None
    peers[0].op("a")
    assert peers[0].hear()["id"] == 1
    for p in peers:
        p.sock.close()


def test_the_socket_is_for_owner_and_group_only(server):
    assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o660


def test_a_stale_socket_file_is_replaced_and_close_removes_it(tmp_path):
    path = str(tmp_path / "s")
    control.Server(path).close(unlink=False)
    assert os.path.exists(path)
    control.Server(path).close()
    assert not os.path.exists(path)


def test_a_path_that_is_too_long_is_named_in_the_error(tmp_path):
    with pytest.raises(OSError, match="107 bytes: .*" + "x" * 100):
        control.Server(str(tmp_path / ("x" * 120)))
