"""HTTP/1.1 on one connection, against a peer that sends scripted bytes with pauses.

Over TLS (:mod:`tests.store.test_tls` has what only that has) it is the same.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from sidecar.mounter.store.http import pool as pool_module
from sidecar.mounter.store.http.connection import Connection, UnsendableRequest, request_head
from sidecar.mounter.store.http.fields import BrokenResponse
from sidecar.mounter.store.http.pool import ConnectionPool, Endpoint
from sidecar.mounter.store.http.timeouts import AdaptiveTimeout
from tests.store import raw
from tests.support.clouds import CountingObserver
from tests.support.proxy import Head
from tests.support.raw_server import RawServer
from tests.support.servers import TlsFiles

Piece = bytes | float
"""Bytes that the peer sends, or seconds that it pauses."""
Connect = Callable[..., Connection]

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(params=["plain", "tls"])
def connect(request: pytest.FixtureRequest, tls_files: TlsFiles) -> Iterator[Connect]:
    """A connection to a peer that sends the pieces and then closes."""
    made: list[Connection] = []
    threads: list[threading.Thread] = []
    trusted = tls_files.certificate if request.param == "tls" else None
    server = tls_files.server_context()

    def run(listener: socket.socket, pieces: Sequence[Piece]) -> None:
        with contextlib.ExitStack() as opened:
            opened.enter_context(listener)
            peer = opened.enter_context(listener.accept()[0])
            if trusted is not None:
                peer = opened.enter_context(server.wrap_socket(peer, server_side=True))
            for piece in pieces:
                if isinstance(piece, float):
                    time.sleep(piece)
                else:
                    peer.sendall(piece)

    def start(*pieces: Piece, timeout_s: float = 5.0, limit_s: float = 60.0) -> Connection:
        listener = socket.create_server(("127.0.0.1", 0))
        threads.append(threading.Thread(target=run, args=(listener, pieces)))
        threads[-1].start()
        port = listener.getsockname()[1]
        made.append(raw.connect("127.0.0.1", port, timeout_s, limit_s, authorities=trusted))
        return made[-1]

    yield start
    for connection in made:
        connection.close()
    for thread in threads:
        thread.join(20)


def body(connection: Connection, most_bytes: int = 1 << 20) -> bytes:
    return connection.response().read(most_bytes)


def test_a_body_of_known_length_and_the_answer_behind_it(connect: Connect) -> None:
    one = OK + b"Content-Length: 3\r\nETag: x\r\n\r\nabc"
    connection = connect(one + one)
    for _ in range(2):
        response = connection.response()
        assert (response.status, response.fields["etag"]) == (200, "x")
        assert not response.is_read
        assert response.read(100) == b"abc"
        assert response.is_read
        assert not response.will_close


def test_bytes_that_come_one_by_one(connect: Connect) -> None:
    sent = OK + b"content-length: 5\r\n\r\nhello"
    connection = connect(*[part for byte in sent for part in (bytes([byte]), 0.001)])
    assert body(connection) == b"hello"


def test_a_body_is_filled_in_one_call(connect: Connect) -> None:
    content = bytes(range(256)) * 1024
    connection = connect(OK + b"content-length: 262144\r\n\r\n", content[:100], 0.05, content[100:])
    buffer = memoryview(bytearray(len(content)))
    assert connection.response().readinto(buffer) == len(content)
    assert buffer == content


def test_chunks(connect: Connect) -> None:
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    connection = connect(
        chunked, b"3\r\nabc\r\n", 0.01, b"A;x=y\r\n0123456789\r\n0\r\nbehind: x\r\n\r\n",
        OK + b"content-length: 1\r\n\r\nz",
    )  # fmt: skip
    response = connection.response()
    assert response.read(100) == b"abc0123456789"
    assert response.is_read
    assert body(connection) == b"z"


def test_a_body_without_a_length_ends_with_the_connection(connect: Connect) -> None:
    response = connect(OK + b"\r\n", b"abc", 0.01, b"def").response()
    assert response.will_close
    assert response.read(100) == b"abcdef"


def test_interim_answers_are_skipped(connect: Connect) -> None:
    later = OK + b"content-length: 0\r\n\r\n"
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    response = connect(interim + later).response()
    assert (response.status, response.is_read) == (200, True)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_some_answers_have_no_body(connect: Connect, status: bytes) -> None:
    response = connect(b"HTTP/1.1 " + status + b"\r\n\r\n", 0.5).response()
    assert response.is_read
    assert not response.will_close


@pytest.mark.parametrize(
    ("first_line", "field", "closes"),
    [
        (b"HTTP/1.1", b"connection: close", True),
        (b"HTTP/1.0", b"x: y", True),
        (b"HTTP/1.0", b"connection: keep-alive", False),
    ],
)
def test_who_closes_says_so(
    connect: Connect, first_line: bytes, field: bytes, closes: bool
) -> None:
    answer = first_line + b" 200 OK\r\ncontent-length: 0\r\n" + field + b"\r\n\r\n"
    assert connect(answer).response().will_close is closes


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20\xb2 OK\r\n\r\n",
        OK + b"content-length: \xb2\r\n\r\nab",
        OK + b"transfer-encoding: chunked\r\n\r\n-5\r\nabcdef",
        b"HTTP/2 200\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"x: y\r\n" * 20_000,
        OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
        OK + b"transfer-encoding: chunked\r\n\r\n" + b"1" * 10_000,
    ],
)
def test_what_is_not_http(connect: Connect, sent: bytes) -> None:
    with pytest.raises(BrokenResponse):
        body(connect(sent))


def test_a_connection_that_ends_before_the_answer(connect: Connect) -> None:
    with pytest.raises(ConnectionResetError):
        connect(OK).response()


def test_a_body_that_ends_early_says_how_much_is_missing(connect: Connect) -> None:
    response = connect(OK + b"content-length: 10\r\n\r\nabc").response()
    assert response.read(100) == b"abc"
    assert (response.length, response.is_read) == (7, False)


def test_silence_before_the_answer(connect: Connect) -> None:
    with pytest.raises(TimeoutError):
        connect(0.5, timeout_s=0.1).response()


def test_silence_in_the_body_keeps_what_came(connect: Connect) -> None:
    connection = connect(OK + b"content-length: 10\r\n\r\nabc", 0.8, timeout_s=0.1)
    response = connection.response()
    buffer = memoryview(bytearray(10))
    assert response.readinto(buffer) == 3
    assert bytes(buffer[:3]) == b"abc"
    with pytest.raises(TimeoutError):
        response.readinto(buffer[3:])


def test_a_connection_that_comes_back_to_a_closed_pool_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = ConnectionPool(Endpoint.parse(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        connection = pool.take(AdaptiveTimeout(1.0, 1.0))
        with listener.accept()[0] as peer:
            peer.settimeout(5)
            pool.close()
            pool.give_back(connection)
            assert peer.recv(1) == b""


def test_a_connection_that_was_idle_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What translates addresses has forgotten it, and says so to nobody."""
    monkeypatch.setattr(pool_module, "MOST_IDLE_S", 0.2, raising=False)
    end = threading.Event()
    last = threading.local()  # of the connection, which has a thread of its own

    def forgetting(_request: Head, _body: bytes) -> Iterator[Piece | None]:
        now_s = time.monotonic()
        if now_s - getattr(last, "answered_s", now_s) > 0.5:
            end.wait(60)
            yield None
        yield raw.content()
        last.answered_s = time.monotonic()

    observer = CountingObserver()
    with RawServer(forgetting) as server:
        store = raw.open_at("s3", server.endpoint, observer, retry_budget_s=20)
        for pause_s in (0.0, 0.0, 0.7, 0.0):
            time.sleep(pause_s)
            assert raw.fetch(store) == raw.BODY[:100]
        store.close()
        end.set()
    assert observer.retries == []
    assert server.connections == 2


def test_connections_that_nobody_needs_any_more_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each one has a port of what translates addresses."""
    monkeypatch.setattr(pool_module, "MOST_IDLE_S", 0.0)
    timeout = AdaptiveTimeout(5.0, 5.0)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pool = ConnectionPool(Endpoint.parse(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        taken: list[Connection] = []
        for _ in range(5):  # a thread has one connection at a time
            thread = threading.Thread(target=lambda: taken.append(pool.take(timeout)))
            thread.start()
            thread.join()
        peers = [stack.enter_context(listener.accept()[0]) for _ in taken]
        for connection in taken:
            pool.give_back(connection)
        for peer in peers[:-1]:
            peer.settimeout(5)
            assert peer.recv(1) == b""
        pool.close()


def test_a_request_is_one_request() -> None:
    head = request_head("GET", "/a?b=c", {"range": "bytes=0-1"}, "host:9000")
    assert head == (
        b"GET /a?b=c HTTP/1.1\r\nhost: host:9000\r\naccept-encoding: identity\r\n"
        b"range: bytes=0-1\r\n\r\n"
    )
    for target, headers in (
        ("/a\r\nx: y", {}),
        ("/a b", {}),
        ("/a", {"x": "y\r\nz: w"}),
        ("/a", {"x": "y\nz"}),
        ("/a", {"x": "y\rz"}),
        ("/a", {"x": "y\0z"}),
        ("/a", {"x": "\u65e5"}),
    ):
        with pytest.raises(UnsendableRequest):
            request_head("GET", target, headers, "host")
