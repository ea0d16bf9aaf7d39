"""The bounded HTTP server over real sockets: what is answered, refused, kept and dropped."""

from __future__ import annotations

import contextlib
import http.client
import logging
import random
import resource
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.http.listening import listen
from sidecar.http.message import HttpRequest, HttpResponse, Refused, parse_head
from sidecar.http.server import HttpServer, Route, ServerLimits
from sidecar.units import MIB
from tests.support.many_clients import is_closed, is_read
from tests.support.waiting import wait_until

LIMITS = ServerLimits(
    connections=8, idle_s=60, kept_s=60, request_s=60, body_bytes=2 * MIB, held_bytes=3 * MIB
)
LARGE = bytes(2 * MIB)
FEW = 4


class Served:
    """A server in a thread of this process. ``gate`` holds what `/wait` answers."""

    def __init__(self, limits: ServerLimits, *, begins: bool = True) -> None:
        self.gate = threading.Semaphore(0)
        self.asked = 0
        routes = {
            "/get": Route("GET", lambda _: HttpResponse(HTTPStatus.OK, b"got\n")),
            "/echo": Route("POST", lambda request: HttpResponse(HTTPStatus.OK, request.body)),
            "/large": Route("GET", lambda _: HttpResponse(HTTPStatus.OK, LARGE)),
            "/wait": Route("GET", self._wait, "waiting"),
            "/work": Route("POST", self._work),
            "/few": Route("GET", self._wait, "few", most=FEW),
            "/bug": Route("GET", lambda request: HttpResponse(HTTPStatus.OK, request.body[7])),  # type: ignore[arg-type]
        }
        self.server = HttpServer(listen("127.0.0.1", 0, ""), routes, limits)
        self.port = self.server.port
        self._thread = threading.Thread(target=self.server.serve)
        if begins:
            self.begin()
        self._clients: list[socket.socket] = []

    def begin(self) -> None:
        self._thread.start()

    def _wait(self, _: HttpRequest) -> HttpResponse:
        self.asked += 1
        assert self.gate.acquire(timeout=60)
        return HttpResponse(HTTPStatus.OK, b"waited\n")

    def _work(self, request: HttpRequest) -> HttpResponse:
        return (
            self._wait(request) if len(request.body) > MIB else HttpResponse(HTTPStatus.OK, b"done")
        )

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        self._clients.append(client)
        return client

    def ask(self, path: str = "/get", method: str = "GET", body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read()
        finally:
            connection.close()

    def stop(self) -> None:
        self.server.stop()
        self.gate.release(100)
        for client in self._clients:
            client.close()
        self._thread.join()


def serving(limits: ServerLimits) -> Iterator[Served]:
    served = Served(limits)
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture
def served() -> Iterator[Served]:
    yield from serving(LIMITS)


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def read_until(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        received = client.recv(65536)
        assert received, data
        data += received
    return data


# --- HTTP ---------------------------------------------------------------------------------------


def test_many_requests_on_one_connection(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    for number in range(50):
        connection.request("POST", "/echo?x=y", str(number).encode())
        assert connection.getresponse().read() == str(number).encode()
        connection.request("HEAD", "/large")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(LARGE)))
        assert answer.read() == b""
        assert answer.headers["Date"].endswith(" GMT")
    connection.close()


def test_requests_that_are_sent_before_the_answer(served: Served) -> None:
    client = served.connect()
    one = b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\n%02d"
    last = b"GET /get HTTP/1.1\r\nConnection: keep-alive, Close\r\n\r\n"
    client.sendall(b"".join(one % number for number in range(90)) + last)
    bodies = [part[-2:] for part in read_all(client).split(b"HTTP/1.1 200 OK")[1:-1]]
    assert bodies == [b"%02d" % number for number in range(90)]


def test_byte_by_byte(served: Served) -> None:
    client = served.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"POST /echo HTTP/1.0\r\ncontent-length:\t3 \r\n\r\nabc":
        client.send(bytes([byte]))
    assert read_all(client).endswith(b"\r\nConnection: close\r\n\r\nabc")


def test_a_client_that_asks_before_it_sends_the_body(served: Served) -> None:
    client = served.connect()
    client.sendall(b"POST /echo HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n")
    assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(b"abc")
    assert read_until(client, b"abc").startswith(b"HTTP/1.1 200 OK\r\n")


REFUSED = {
    "none": (b"\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a proxy's": (b"GET http://x/get HTTP/1.1\r\n\r\n", 400),
    "a space": (b"GET /g et HTTP/1.1\r\n\r\n", 400),
    "a line feed": (b"GET /get HTTP/1.1\r\nA: b\nContent-Length: 1\r\n\r\n", 400),
    "folded": (b"GET /get HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
    "a space before the colon": (b"GET /get HTTP/1.1\r\nA : b\r\n\r\n", 400),
    "two lengths": (b"POST /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
    "a list of lengths": (b"POST /echo HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", 400),
    "negative": (b"POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
    "no digit": (b"POST /echo HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 400),
    "many digits": (b"POST /echo HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
    "chunked": (b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
    "a long body": (b"POST /echo HTTP/1.1\r\nContent-Length: 2097153\r\n\r\n", 413),
    "a body of GET": (b"GET /get HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 413),
    "a long head": (b"GET /get HTTP/1.1\r\nA: " + b"x" * 8200, 431),
    "many headers": (b"GET /get HTTP/1.1\r\n" + b"A:\r\n" * 3000 + b"\r\n", 431),
    "another page": (b"GET /other HTTP/1.1\r\n\r\n", 404),
    "another method": (b"DELETE /get HTTP/1.1\r\n\r\n", 405),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(served: Served, data: bytes, status: int) -> None:
    client = served.connect()
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"\r\nDate: ") == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert (b"\r\nAllow: GET\r\n" in answer) == (status == 405)
    assert served.ask() == b"got\n"


def test_a_refusal_is_seen_by_who_is_still_sending(served: Served) -> None:
    client = served.connect()
    client.sendall(b"POST /echo HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n")
    for _ in range(100):
        client.sendall(bytes(10_000))
    client.shutdown(socket.SHUT_WR)
    assert read_all(client).startswith(b"HTTP/1.1 413 ")


def test_a_bug_is_logged_and_the_next_request_answered(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    client = served.connect()
    client.sendall(b"GET /bug HTTP/1.1\r\n\r\nGET /get HTTP/1.1\r\nConnection: close\r\n\r\n")
    answers = read_all(client)
    assert answers.startswith(b"HTTP/1.1 500 ")
    assert b"a bug: see the log\n" in answers
    assert answers.endswith(b"got\n")
    assert "IndexError" in caplog.text


# --- limits -------------------------------------------------------------------------------------


def test_the_oldest_that_waits_for_its_client_goes(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    busy = served.connect()
    busy.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
    wait_until(lambda: served.asked, "it is asked")
    kept = [served.connect() for _ in range(LIMITS.connections - 1)]
    kept[0].sendall(b"GET /get HTTP/1.1\r\n\r\n")  # so it is the newest of them
    read_until(kept[0], b"got\n")
    kept[2].sendall(b"GET /get HTT")  # and a byte more changes nothing
    for newcomer in (served.connect(), served.connect()):
        newcomer.sendall(b"GET /get HTTP/1.1\r\n\r\n")
        read_until(newcomer, b"got\n")
    assert is_closed(kept[1])
    assert is_closed(kept[2])
    kept[0].sendall(b"GET /get HTTP/1.1\r\n\r\n")
    read_until(kept[0], b"got\n")
    served.gate.release()
    assert read_until(busy, b"waited\n").startswith(b"HTTP/1.1 200 OK\r\n")
    assert len([r for r in caplog.records if "too many connections" in r.message]) == 1


def test_who_comes_while_all_are_being_answered_waits(served: Served) -> None:
    busy = [served.connect() for _ in range(LIMITS.connections)]
    for client in busy:
        client.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
    wait_until(lambda: served.asked, "one is asked")
    later = served.connect()
    later.sendall(b"GET /get HTTP/1.1\r\n\r\n")
    served.gate.release(LIMITS.connections)
    read_until(later, b"got\n")
    for client in busy:
        read_until(client, b"waited\n")


def test_who_has_asked_is_not_dropped_for_a_newcomer_of_the_same_turn() -> None:
    """A server that was not scheduled for a while meets all of them at once."""
    served = Served(LIMITS, begins=False)
    busy = [served.connect() for _ in range(LIMITS.connections)]
    for client in busy:
        client.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
    later = served.connect()
    later.sendall(b"GET /get HTTP/1.1\r\n\r\n")
    served.begin()
    try:
        served.gate.release(LIMITS.connections)
        for client in busy:
            read_until(client, b"waited\n")
        read_until(later, b"got\n")
    finally:
        served.stop()


def test_a_slow_answer_keeps_no_other_route_waiting(served: Served) -> None:
    waiting = served.connect()
    waiting.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
    wait_until(lambda: served.asked, "it is asked")
    assert served.ask() == b"got\n"
    served.gate.release()
    read_until(waiting, b"waited\n")


def test_who_sends_large_bodies_keeps_only_the_like_waiting(served: Served) -> None:
    client = served.connect()
    client.sendall(b"POST /work HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE)
    wait_until(lambda: served.asked == 1, "it is being answered")
    assert served.ask("/work", "POST", b"small") == b"done"
    assert served.ask("/echo", "POST", b"small") == b"small"
    served.gate.release()
    assert read_until(client, b"waited\n").startswith(b"HTTP/1.1 200 OK")


def test_an_answer_is_computed_once_for_all_who_ask_before_it_is_begun(served: Served) -> None:
    first = served.connect()
    first.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
    wait_until(lambda: served.asked, "it is asked")
    others = [served.connect() for _ in range(LIMITS.connections - 2)]
    for client in others:
        client.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
        wait_until(lambda client=client: is_read(client), "it is read")
    served.ask()  # so what was read before has been looked at
    served.gate.release()
    read_until(first, b"waited\n")
    wait_until(lambda: served.asked == 2, "it is asked anew: the first answer may be older")
    served.gate.release()
    for client in others:
        read_until(client, b"waited\n")
    assert served.asked == 2


def test_those_who_wait_for_one_page_leave_connections_for_the_others(served: Served) -> None:
    waiting = [served.connect() for _ in range(FEW)]
    for client in waiting:
        client.sendall(b"GET /few HTTP/1.1\r\n\r\n")
        wait_until(lambda client=client: is_read(client), "it is read")
    for _ in range(3 * LIMITS.connections):
        client = served.connect()
        client.sendall(b"GET /few HTTP/1.1\r\n\r\n" * 2000)
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert served.ask() == b"got\n"
    served.gate.release(FEW)
    for client in waiting:
        read_until(client, b"waited\n")


def test_bodies_of_all_together(served: Served) -> None:
    """Half a MiB each, never whole: the seventh takes the room of the first."""
    head = b"POST /echo HTTP/1.1\r\nContent-Length: 600000\r\n\r\n"
    clients = [served.connect() for _ in range(LIMITS.connections - 2)]
    for client in clients:
        client.sendall(head + bytes(500_000))
    served.ask()
    assert served.ask("/echo", "POST", bytes(2 * MIB)) == bytes(2 * MIB)
    wait_until(lambda: is_closed(clients[0]), "the oldest is gone")
    assert not is_closed(clients[-1])


def test_answers_of_all_together(served: Served) -> None:
    """Clients that do not read their answers are dropped for one that does."""
    clients = [served.connect() for _ in range(LIMITS.connections - 2)]
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.sendall(b"GET /large HTTP/1.1\r\n\r\n")
    for _ in range(5):
        assert served.ask("/large") == LARGE
    assert len(read_all(clients[0])) < len(LARGE)


def test_a_deadline_for_a_request_and_its_answer() -> None:
    for served in serving(replace(LIMITS, idle_s=2.0, request_s=0.1)):
        client = served.connect()
        client.sendall(b"POST /echo HTTP/1.1\r\nContent-Length: 600000\r\n\r\nabc")
        assert read_all(client).startswith(b"HTTP/1.1 408 ")
        unread = served.connect()
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        unread.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        idle = served.connect()
        wait_until(lambda idle=idle: is_closed(idle), "who says nothing is sent away")
        wait_until(lambda unread=unread: is_closed(unread), "who does not read, too")


def test_without_descriptors_it_waits(served: Served) -> None:
    """The limit is this process's: the server has it too."""
    client = served.connect()
    client.sendall(b"GET /get HTTP/1.1\r\n\r\n")
    read_until(client, b"got\n")
    later = socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (later.fileno(), hard))
    try:
        later.settimeout(60)
        later.connect(("127.0.0.1", served.port))
        later.sendall(b"GET /get HTTP/1.1\r\n\r\n")
        wait_until(lambda: is_closed(client), "the oldest is dropped for the descriptor")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    read_until(later, b"got\n")
    later.close()


def test_stopping_answers_what_has_begun(served: Served) -> None:
    begun, idle = served.connect(), served.connect()
    idle.sendall(b"GET /get HTTP/1.1\r\n\r\n")
    read_until(idle, b"got\n")
    begun.sendall(b"GET /wait HTTP/1.1\r\n\r\nGET /wait HTTP/1.1\r\n\r\n")
    wait_until(lambda: served.asked, "it is asked")
    served.server.stop()
    assert read_all(idle) == b""
    served.gate.release()
    answer = read_all(begun)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"waited\n") == 1


def test_a_connection_is_kept_longer_than_one_that_asks_nothing() -> None:
    for served in serving(replace(LIMITS, idle_s=0.3)):
        kept = served.connect()
        kept.sendall(b"GET /get HTTP/1.1\r\n\r\n")
        read_until(kept, b"got\n")
        assert read_all(served.connect()) == b""  # nothing was asked on it
        kept.sendall(b"GET /get HTTP/1.1\r\n\r\n")
        read_until(kept, b"got\n")


def test_draining_serves_everybody_and_keeps_nobody(served: Served) -> None:
    kept = served.connect()
    kept.sendall(b"GET /get HTTP/1.1\r\n\r\n")
    read_until(kept, b"got\n")
    served.server.stop(drain_s=60)
    for client in (kept, served.connect()):
        client.sendall(b"GET /get HTTP/1.1\r\n\r\n")
        answer = read_all(client)
        assert answer.endswith(b"got\n")
        assert b"\r\nConnection: close\r\n" in answer


# --- any bytes ----------------------------------------------------------------------------------

PIECES = [
    b"GET", b"POST", b"HEAD", b" ", b" /", b"/get", b"/echo", b" HTTP/1.1", b" HTTP/1.0", b"\r\n",
    b"\n", b"\r\n\r\n", b":", b"Content-Length", b"Transfer-Encoding: chunked", b"Connection",
    b"close", b"Expect: 100-continue", b"0", b"7", b"4000000000", b"\x00", b"\xff", b"\t", b",",
]  # fmt: skip
HEADS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=24).map(b"".join)


@given(HEADS)
@settings(max_examples=500, deadline=None)
def test_any_head_is_parsed_or_refused(data: bytes) -> None:
    with contextlib.suppress(Refused):
        head = parse_head(data)
        assert 0 <= head.body_bytes < 10**15
        assert head.path.startswith("/")


def test_any_bytes_are_answered_or_dropped(served: Served) -> None:
    make = random.Random(1)
    for _ in range(500):
        client = served.connect()
        client.sendall(b"".join(make.choices(PIECES, k=make.randrange(1, 30))))
        client.shutdown(socket.SHUT_WR)
        try:
            answer = read_all(client)
        except ConnectionResetError:
            answer = b""
        client.close()
        assert not answer or answer.startswith(b"HTTP/1.1 ")
        assert b" 500 " not in answer
    assert served.ask() == b"got\n"
