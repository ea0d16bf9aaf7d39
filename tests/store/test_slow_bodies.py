"""Bodies on a slow way to the store: what moves is no outage, and what does not move is one."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from sidecar.mounter.store.http.client import HttpClient
from sidecar.mounter.store.http.connection import Response
from sidecar.mounter.store.http.fields import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.signed_request import BufferedResponse, SignedRequest
from sidecar.mounter.store.http.timeouts import AdaptiveTimeout
from sidecar.mounter.store.interface import FileSlice
from sidecar.units import MIB
from tests.support.proxy import Head
from tests.support.raw_server import Piece, RawServer
from tests.support.threaded_server import ThreadedServer

SILENCE_S = 1.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Untranslated:
    def refused(self, call: None, response: Response, body: bytes) -> Exception:
        return AssertionError(response.status)

    def unanswered(self, call: None, error: Exception) -> Exception:
        return error

    def redirect(self, fields: Headers) -> None:
        return None


@contextlib.contextmanager
def client_of(server: ThreadedServer) -> Iterator[HttpClient[None]]:
    with server:
        client: HttpClient[None] = HttpClient(Endpoint.parse(server.endpoint), Untranslated())
        try:
            yield client
        finally:
            client.close()


def put(client: HttpClient[None], target: str, content: FileSlice | bytes) -> BufferedResponse:
    timeout = AdaptiveTimeout(SILENCE_S, SILENCE_S)
    request = SignedRequest("PUT", target, {})
    return client.send(None, lambda: request, (content,), accepted={200}, timeout=timeout)


class SlowReader(ThreadedServer):
    """Takes a quarter of a MiB at a time, in longer intervals than half of the time-out."""

    def __init__(self) -> None:
        super().__init__()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB // 8)

    def _serve(self, client: socket.socket) -> None:
        left = 2 * MIB
        with client:
            while left > 0 and (piece := client.recv(min(left, MIB // 4), socket.MSG_WAITALL)):
                left -= len(piece)
                self._ending.wait(0.6 * SILENCE_S)
            client.sendall(OK)


@pytest.fixture
def file() -> Iterator[FileSlice]:
    with tempfile.TemporaryFile() as opened:
        opened.truncate(2 * MIB)
        yield FileSlice(opened.fileno(), 0, 2 * MIB)


def test_a_body_that_is_taken_slowly_is_waited_for(file: FileSlice) -> None:
    """The kernel takes all of it at once, and is rid of it seconds later."""
    with client_of(SlowReader()) as client:
        assert put(client, "/part", file).status == 200


class OneByOne(RawServer):
    """Takes all bodies at once, as a proxy in the pod does, and answers one after the other."""

    def __init__(self) -> None:
        super().__init__(self._answers)
        self._turn = threading.Lock()

    def _answers(self, request: Head, body: bytes) -> Iterable[Piece]:
        if "lost" in request.target:
            self._ending.wait()
        with self._turn:
            yield 0.6 * SILENCE_S
            yield OK


def test_a_body_waits_as_long_as_those_before_it_arrive() -> None:
    with client_of(OneByOne()) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: put(client, f"/part/{n}", bytes(1000)), range(8)))
    assert [answer.status for answer in answers] == [200] * 8


def test_a_body_whose_turn_is_over_is_lost() -> None:
    """Others that come later go on for as long as it takes."""
    over = threading.Event()
    with client_of(OneByOne()) as client, ThreadPoolExecutor(3) as threads:

        def go_on() -> None:
            while not over.is_set():
                put(client, "/part", bytes(1000))

        others = threads.submit(go_on)
        lost: Future[BufferedResponse] = threads.submit(put, client, "/lost", bytes(1000))
        try:
            with pytest.raises(TimeoutError):
                lost.result(60)
        finally:
            over.set()
        others.result(60)
