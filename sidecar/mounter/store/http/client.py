"""One request and its answer, over keep-alive connections and without an SDK.

One request, one connection. No thread is started, so that a forked child can use it. What is
sent from a file goes by sendfile(2), or through one small buffer where the connection is TLS.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

from sidecar.errors import SidecarError
from sidecar.mounter.store.http.connection import (
    TRANSPORT_ERRORS,
    Connection,
    Headers,
    Response,
    request_head,
)
from sidecar.mounter.store.http.pool import AdaptiveTimeout, ConnectionPool, Endpoint
from sidecar.mounter.store.http.requests import Get, Put, RequestBuilder
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.interface import Content, FileSlice
from sidecar.mounter.store.store_errors import Place, Request, parse_retry_after
from sidecar.units import KIB, MIB

_MAX_ERROR_BYTES = 64 * KIB
_MAX_REPLY_BYTES = MIB
_SLICE_BYTES = 256 * KIB

Body = Sequence[Content]
"""What a request carries, one piece behind the other."""

S = TypeVar("S")
T = TypeVar("T")


class Reply(NamedTuple):
    """An answer that is not an error, read to its end."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """The content."""
        return json.loads(self.content)


class HttpClient:
    """Sends requests to one store.

    Args:
        endpoint: where the requests go.
        requests: how they look.
        place: for messages.
    """

    def __init__(self, endpoint: Endpoint, requests: RequestBuilder, place: Place) -> None:
        self._pool = ConnectionPool(endpoint)
        self._requests = requests
        self._place = place

    def put(
        self,
        request: Request,
        sign: Callable[[], Put],
        body: Body,
        *,
        accepted: Collection[int],
        timeout: AdaptiveTimeout,
    ) -> Reply:
        """One attempt at a request with a body. Raises as :meth:`get`."""

        def send(signed: Put, host: str, connection: Connection) -> bool:
            length = {"content-length": str(sum(map(len, body)))}
            headers = {**signed.headers, **length}
            return _send(
                connection, request_head(signed.method, signed.target, headers, host), body
            )

        return self._exchange(request, sign, send, _whole, accepted, timeout)

    def head(
        self, request: Request, sign: Callable[[], Get], *, timeout: AdaptiveTimeout
    ) -> Headers:
        """One attempt at a HEAD: the fields of its answer. Raises as :meth:`get`."""

        def send(signed: Get, host: str, connection: Connection) -> bool:
            connection.send(request_head("HEAD", signed.target, signed.headers, host))
            return True

        def fields(response: Response) -> Headers:
            return response.fields

        accepted = {HTTPStatus.OK}
        return self._exchange(request, sign, send, fields, accepted, timeout, has_body=False)

    def get(
        self,
        request: Request,
        sign: Callable[[], Get],
        read: Callable[[Response], T],
        *,
        accepted: Collection[int],
        timeout: AdaptiveTimeout,
    ) -> T:
        """One attempt: what ``read`` makes of an answer whose status is ``accepted``.

        Args:
            request: for messages.
            sign: makes the request; again where the store says that the bucket is elsewhere.
            read: reads the body; to its end, or the connection is not used again.

        Raises:
            SidecarError: what the answer means, where asking again does not help.
            Again: what the answer means, or that there was none.
        """

        def send(signed: Get, host: str, connection: Connection) -> bool:
            connection.send(request_head("GET", signed.target, signed.headers, host))
            return True

        return self._exchange(request, sign, send, read, accepted, timeout)

    def _exchange(
        self,
        request: Request,
        sign: Callable[[], S],
        send: Callable[[S, str, Connection], bool],
        read: Callable[[Response], T],
        accepted: Collection[int],
        timeout: AdaptiveTimeout,
        *,
        has_body: bool = True,
    ) -> T:
        followed = False
        while True:
            signed = sign()
            pool = self._pool
            connection: Connection | None = None
            response: Response | None = None
            reused = False
            try:
                connection, reused = pool.take(timeout.timeout_s)
                began_s = time.perf_counter()
                whole = send(signed, pool.authority, connection)
                response = connection.response(has_body=has_body)
                response.will_close = response.will_close or not whole
                timeout.answered(time.perf_counter() - began_s)
                if response.status in accepted:
                    return read(response)
                body = response.read(_MAX_ERROR_BYTES)
                moved = None if followed else self._requests.moved(response.fields)
                if moved is None:
                    raise self._meaning(response, body, request)
                followed = True
                self._pool = ConnectionPool(moved)
                pool.close_idle()
            except TRANSPORT_ERRORS as error:
                if isinstance(error, TimeoutError):
                    timeout.stalled()
                if not (reused and response is None and _was_closed_idle(error)):
                    raise self._place.from_transport(error) from None
                # A server may close an idle connection at any time; that is no outage.
                pool.close_idle()
            finally:
                usable = response is not None and response.is_read and not response.will_close
                if connection is not None and usable and pool is self._pool:
                    pool.give_back(connection)
                elif connection is not None:
                    pool.discard(connection)

    def close(self) -> None:
        """Close idle connections, and the others when their requests end."""
        self._pool.close()

    def _meaning(
        self, response: Response, body: bytes, request: Request
    ) -> SidecarError | Retryable:
        answer = self._requests.refusal(response.status, response.fields, body)
        retry_after_s = parse_retry_after(response.fields.get("retry-after"))
        return self._place.from_answer(replace(answer, retry_after_s=retry_after_s), request)


def _was_closed_idle(error: Exception) -> bool:
    return isinstance(error, ConnectionResetError | BrokenPipeError)


def _whole(response: Response) -> Reply:
    return Reply(response.status, response.fields, response.read(_MAX_REPLY_BYTES))


def _send(connection: Connection, head: bytes, body: Body) -> bool:
    """False where the answer came before all was sent."""
    connection.send(head)
    # A store that refuses says so at once, reads no further and closes: the answer is worth
    # more than the broken pipe, which is met again if there is none.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for piece in body:
            if not isinstance(piece, FileSlice):
                connection.send(piece)
            elif not _send_file(connection, piece):
                return False
    return True


def _send_file(connection: Connection, piece: FileSlice) -> bool:
    """False where the answer came before all was sent."""
    sent = _copy(connection, piece) if connection.is_tls else _sendfile(connection, piece)
    if sent is None:
        return False
    for _ in range(sent, piece.size_bytes, _SLICE_BYTES):  # the file became shorter meanwhile
        connection.send(bytes(min(_SLICE_BYTES, piece.size_bytes - sent)))
        sent += _SLICE_BYTES
    return True


def _copy(connection: Connection, piece: FileSlice) -> int:
    """Send up to the end of the file; how much there was."""
    sent = 0
    while sent < piece.size_bytes:
        more = min(_SLICE_BYTES, piece.size_bytes - sent)
        data = os.pread(piece.fd, more, piece.offset + sent)
        if not data:
            break
        connection.send(data)
        sent += len(data)
    return sent


def _sendfile(connection: Connection, piece: FileSlice) -> int | None:
    """:func:`_copy` inside the kernel; None where the answer came before.

    Polled, for a blocking sendfile(2) waits for room in a connection that nobody reads from
    any more.
    """
    sent = 0
    with connection.unblocked() as (sock, timeout_s):
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT)
        while sent < piece.size_bytes:
            events = poll.poll(timeout_s * 1000)
            if not events:
                raise TimeoutError("the store takes no more")
            if events[0][1] & select.POLLIN:
                return None
            try:
                count = os.sendfile(
                    sock.fileno(), piece.fd, piece.offset + sent, piece.size_bytes - sent
                )
            except BlockingIOError:
                continue
            if not count:
                break
            sent += count
    return sent
