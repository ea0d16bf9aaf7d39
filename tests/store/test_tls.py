"""What only TLS has: trust, records that come in pieces, the end of a session, new keys."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sidecar.mounter.store.http.connection import Connection
from tests.store import raw
from tests.support import raw_server
from tests.support.clouds import CountingObserver
from tests.support.forward_proxy import TlsFront
from tests.support.servers import TlsFiles, free_port
from tests.support.waiting import wait_until

HOST = "127.0.0.1"
OK = b"HTTP/1.1 200 OK\r\n"
Serve = Callable[..., int]
Connect = Callable[..., Connection]
KeyChanger = tuple[int, Callable[[bytes], None]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """The port of a server that takes one connection, and does the same with it."""
    threads: list[threading.Thread] = []

    def run(listener: socket.socket, act: Callable[[socket.socket], None]) -> None:
        # Clients that trust nobody, or leave, are what some tests want.
        with listener, listener.accept()[0] as peer, contextlib.suppress(OSError):
            act(peer)

    def start(act: Callable[[socket.socket], None], host: str = HOST) -> int:
        listener = socket.create_server((host, 0))
        threads.append(threading.Thread(target=run, args=(listener, act)))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def connect(tls_files: TlsFiles) -> Iterator[Connect]:
    made: list[Connection] = []

    def start(port: int, timeout_s: float = 5.0, limit_s: float = 60.0) -> Connection:
        trusted = tls_files.certificate
        made.append(raw.connect(HOST, port, timeout_s, limit_s, authorities=trusted))
        return made[-1]

    yield start
    for connection in made:
        connection.close()


def until_closed(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while peer.recv(4096):
            pass


@pytest.mark.parametrize("content_bytes", [1, 16_384, 400_000, 2_000_000])
def test_records_that_come_in_pieces(
    serve: Serve, connect: Connect, tls_files: TlsFiles, content_bytes: int
) -> None:
    """Packets end anywhere in a record, and records have any size."""
    numbers = random.Random(content_bytes)
    content = numbers.randbytes(content_bytes)
    plain = OK + b"content-length: %d\r\n\r\n" % content_bytes + content + OK + b"\r\n"

    def act(peer: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = tls_files.server_context().wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                peer.sendall(outgoing.read())
                incoming.write(peer.recv(4096))
        start = 0
        while start < len(plain):
            size = numbers.choice([1, 100, 5000, 16384])
            session.write(plain[start : start + size])
            start += size
        while encrypted := outgoing.read(numbers.choice([3, 1000, 70_000, 300_000])):
            peer.sendall(encrypted)
        until_closed(peer)

    connection = connect(serve(act))
    response = connection.response()
    buffer = memoryview(bytearray(content_bytes))
    count = 0
    while count < content_bytes:
        count += response.readinto(buffer[count:])
    assert buffer == content
    assert connection.response().status == 200
    connection.close()


def test_a_long_body_is_sent(serve: Serve, connect: Connect, tls_files: TlsFiles) -> None:
    content = random.Random(1).randbytes(1_000_001)
    found = bytearray()

    def act(peer: socket.socket) -> None:
        with tls_files.server_context().wrap_socket(peer, server_side=True) as secured:
            while len(found) < len(content) and (data := secured.recv(65536)):
                found.extend(data)
            secured.sendall(OK + b"content-length: 0\r\n\r\n")

    connection = connect(serve(act))
    connection.send(content)
    assert connection.response().status == 200
    assert bytes(found) == content


@pytest.mark.parametrize("host", ["127.0.0.2", HOST], ids=["another name", "an unknown authority"])
def test_who_is_not_trusted(
    serve: Serve, tls_files: TlsFiles, tmp_path_factory: pytest.TempPathFactory, host: str
) -> None:
    others = TlsFiles(tmp_path_factory.mktemp("others"))
    trusted = tls_files if host != HOST else others
    said: list[str] = []

    def act(peer: socket.socket) -> None:
        try:
            tls_files.server_context().wrap_socket(peer, server_side=True).recv(1)
        except ssl.SSLError as error:
            said.append(error.reason)

    with pytest.raises(ssl.SSLCertVerificationError):
        raw.connect(host, serve(act, host), authorities=trusted.certificate)
    # The server is told why.
    wait_until(lambda: said, "the server is told")
    assert "ALERT" in said[0]


@pytest.mark.parametrize("drips", [False, True], ids=["silent", "drip by drip"])
def test_a_handshake_that_does_not_end(serve: Serve, connect: Connect, drips: bool) -> None:
    def act(peer: socket.socket) -> None:
        peer.settimeout(0.02)
        peer.recv(4096)
        with contextlib.suppress(OSError):
            peer.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB begins
            while True:
                if drips:
                    peer.sendall(b"\x02")
                with contextlib.suppress(TimeoutError):
                    if not peer.recv(1):
                        return

    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        connect(serve(act), timeout_s=0.3)
    assert time.monotonic() - began_s < 20


def test_what_is_no_tls(serve: Serve, connect: Connect) -> None:
    def act(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with pytest.raises(ssl.SSLError) as raised:
        connect(serve(act))
    assert raised.value.reason == "WRONG_VERSION_NUMBER"


@pytest.mark.parametrize("comes", ["nothing", "content", "goodbye", "the end"])
def test_what_comes_behind_a_response(
    serve: Serve, connect: Connect, tls_files: TlsFiles, comes: str
) -> None:
    """Only a connection on which nothing came is used again."""
    go, gone = threading.Event(), threading.Event()

    def act(peer: socket.socket) -> None:
        with tls_files.server_context().wrap_socket(peer, server_side=True) as secured:
            secured.sendall(OK + b"content-length: 2\r\n\r\nab")
            go.wait(300)
            if comes == "content":
                secured.sendall(b"x")
            elif comes == "goodbye":
                secured.settimeout(0.1)
                with contextlib.suppress(OSError):
                    secured.unwrap()
            elif comes == "the end":
                secured.shutdown(socket.SHUT_WR)
            gone.set()
            until_closed(secured)

    connection = connect(serve(act))
    assert connection.response().read(10) == b"ab"
    assert connection.is_quiet
    go.set()
    assert gone.wait(300)
    if comes == "nothing":
        time.sleep(0.05)
        assert connection.is_quiet
    else:
        wait_until(lambda: not connection.is_quiet, "something came")
    connection.close()


@pytest.fixture
def key_changer(tls_files: TlsFiles) -> Iterator[KeyChanger]:
    """The port of OpenSSL's own server, and what types there: ``K`` asks for new keys."""
    port = free_port()
    command = ["openssl", "s_server", "-accept", f"{HOST}:{port}", "-tls1_3", "-naccept", "1"]
    files = ["-cert", str(tls_files.certificate), "-key", str(tls_files.key)]
    with subprocess.Popen(
        [*command, *files], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        stdin = server.stdin

        def type_there(typed: bytes) -> None:
            stdin.write(typed)

        try:
            while server.stdout.readline().strip() != b"ACCEPT":
                assert server.poll() is None
            yield port, type_there
        finally:
            server.kill()


def test_new_keys(key_changer: KeyChanger, connect: Connect) -> None:
    port, type_there = key_changer
    connection = connect(port)
    connection.send(b"GET / HTTP/1.1\r\n\r\n")
    for _ in range(3):
        type_there(b"K\n")
        time.sleep(0.1)
        assert connection.is_quiet
        connection.send(b"more\r\n")  # behind the answer, with the new key
        type_there(OK + b"content-length: 0\r\n\r\n")
        assert connection.response().status == 200
    connection.close()


def test_new_keys_are_no_progress(key_changer: KeyChanger, connect: Connect) -> None:
    port, type_there = key_changer
    connection = connect(port, timeout_s=1.0, limit_s=1.0)
    left = threading.Event()

    def change() -> None:
        with contextlib.suppress(OSError):
            while not left.wait(0.02):
                type_there(b"k\n")

    changing = threading.Thread(target=change)
    changing.start()
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        connection.response()
    assert time.monotonic() - began_s < 20
    left.set()
    changing.join()
    connection.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_next_connection_goes_on_with_the_session(
    tls_files: TlsFiles, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion
) -> None:
    """In 1.3 what that takes comes after the handshake."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_files.certificate))
    with (
        raw_server.RawServer(lambda _request, _body: iter([raw.content(), None])) as server,
        TlsFront(server.port, tls_files) as front,
    ):
        front.context.maximum_version = version
        store = raw.open_at("s3", front.endpoint, CountingObserver())
        for _ in range(5):
            assert raw.fetch(store) == raw.BODY[:100]
        store.close()
    assert front.went_on == [False, True, True, True, True]
