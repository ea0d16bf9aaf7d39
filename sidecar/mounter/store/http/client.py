"""Sends one request on one keep-alive connection and reads its response.

A :class:`Translator` says which error a response is. The client starts no thread, so a forked child
can use it. Files are sent by sendfile(2), or over TLS through one small buffer.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import time
from collections.abc import Callable, Collection
from typing import Generic, Protocol, TypeVar

from sidecar.mounter.store.http.connection import (
    TRANSPORT_ERRORS,
    Connection,
    Response,
    first_to_answer,
    silent,
)
from sidecar.mounter.store.http.fields import Headers
from sidecar.mounter.store.http.flow import Flow
from sidecar.mounter.store.http.hedging import Hedging
from sidecar.mounter.store.http.pool import ConnectionPool, Endpoint
from sidecar.mounter.store.http.proxies import PROXY_LOGIN, ProxyFailed
from sidecar.mounter.store.http.signed_request import Body, BufferedResponse, SignedRequest
from sidecar.mounter.store.http.timeouts import AdaptiveTimeout
from sidecar.mounter.store.interface import FileSlice
from sidecar.units import KIB, MIB

_MAX_ERROR_BYTES = 64 * KIB
_MAX_BUFFERED_BYTES = MIB
_SLICE_BYTES = 256 * KIB

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)
T = TypeVar("T")


class Translator(Protocol[C_contra]):
    """The errors of one store. ``call`` is what the caller of :class:`HttpClient` passed."""

    def refused(self, call: C_contra, response: Response, body: bytes) -> Exception:
        """The error for a response whose status is not accepted."""

    def unanswered(self, call: C_contra, error: Exception) -> Exception:
        """The error for a request without a whole response: one of ``TRANSPORT_ERRORS``."""

    def redirect(self, fields: Headers) -> Endpoint | None:
        """The endpoint to which an error response sends the client. Later requests go there."""


class HttpClient(Generic[C]):
    """Sends requests to one store. Safe to use from any thread.

    Args:
        endpoint: where the requests go until the store redirects them.
        translator: makes the errors.
    """

    def __init__(self, endpoint: Endpoint, translator: Translator[C]) -> None:
        self._pool = ConnectionPool(endpoint)
        self._translator = translator
        self._flow = Flow()

    def send(
        self,
        call: C,
        sign: Callable[[], SignedRequest],
        body: Body,
        *,
        accepted: Collection[int],
        timeout: AdaptiveTimeout,
        hedging: Hedging | None = None,
        most_bytes: int = _MAX_BUFFERED_BYTES,
    ) -> BufferedResponse:
        """One attempt at a request with a body. Arguments and errors as for :meth:`receive`.

        Args:
            most_bytes: the longest allowed response.
        """
        size_bytes = sum(map(len, body))

        def write(signed: SignedRequest, pool: ConnectionPool, connection: Connection) -> bool:
            headers = {**signed.headers, "content-length": str(size_bytes)}
            connection.begin_body(turn)
            return _send(connection, pool.head(signed.method, signed.target, headers), body)

        def read(response: Response) -> BufferedResponse:
            content = response.read_all(most_bytes)
            return BufferedResponse(response.status, response.fields, content)

        with self._flow.body(size_bytes) as turn:
            return self._exchange(call, sign, write, read, accepted, timeout, hedging)

    def receive(
        self,
        call: C,
        sign: Callable[[], SignedRequest],
        read: Callable[[Response], T],
        *,
        accepted: Collection[int],
        timeout: AdaptiveTimeout,
        hedging: Hedging | None = None,
    ) -> T:
        """One attempt at a request without a body: the result of ``read`` for its response.

        Args:
            call: the operation, for the translator.
            sign: makes the request; called again after a redirect.
            read: reads the body to its end; if it does not, the connection is not used again.
            accepted: the statuses that are not errors.
            hedging: for requests that may be sent twice, if they are slow; the first answer counts.

        Raises:
            Exception: the translator's, for any other response or none.
        """
        return self._exchange(call, sign, _send_head, read, accepted, timeout, hedging)

    def _exchange(
        self,
        call: C,
        sign: Callable[[], SignedRequest],
        write: Callable[[SignedRequest, ConnectionPool, Connection], bool],
        read: Callable[[Response], T],
        accepted: Collection[int],
        timeout: AdaptiveTimeout,
        hedging: Hedging | None,
    ) -> T:
        redirected = False
        while True:
            signed = sign()
            pool = self._pool
            connection: Connection | None = None
            response: Response | None = None
            try:
                connection = pool.take(timeout)
                began_s = time.perf_counter()
                send = functools.partial(write, signed, pool)
                whole = send(connection)
                connection = _first_to_answer(send, pool, connection, timeout, hedging)
                response = connection.response(has_body=signed.method != "HEAD")
                response.will_close = response.will_close or not whole
                took_s = time.perf_counter() - began_s
                timeout.answered(took_s)
                connection.address.answered()
                if hedging is not None:
                    hedging.answered(took_s)
                if response.status == PROXY_LOGIN and pool.proxy is not None:
                    raise ProxyFailed(pool.proxy, response.status)
                if response.status in accepted:
                    will_close, response.will_close = response.will_close, True
                    result = read(response)  # a refused answer may be another request's
                    response.will_close = will_close
                    return result
                body = response.read(_MAX_ERROR_BYTES)
                target = None if redirected else self._translator.redirect(response.fields)
                if target is None:
                    raise self._translator.refused(call, response, body)
                redirected = True
                self._pool = ConnectionPool(target)
                pool.close_idle()
            except TRANSPORT_ERRORS as error:
                if isinstance(error, TimeoutError):
                    timeout.stalled()
                    if connection is not None:
                        connection.address.failed()
                if response is not None or not _was_closed_idle(connection, error):
                    raise self._translator.unanswered(call, error) from None
                # A server may close an idle connection at any time; that is no outage.
                pool.close_idle()
            finally:
                usable = response is not None and response.is_read and not response.will_close
                if connection is not None and usable and pool is self._pool:
                    pool.give_back(connection)
                elif connection is not None:
                    pool.discard(connection)

    def close(self) -> None:
        """Close idle connections now, the others when their requests end."""
        self._pool.close()


def _first_to_answer(
    send: Callable[[Connection], object],
    pool: ConnectionPool,
    first: Connection,
    timeout: AdaptiveTimeout,
    hedging: Hedging | None,
) -> Connection:
    """The connection whose response is read: ``first``, or a second one if the server is slow.

    The other one is closed. Raises OSError if none answers in time.
    """
    slow_s = None if hedging is None else hedging.slow_after_s()
    if hedging is None or slow_s is None:
        return first
    give_up_s = time.monotonic() + timeout.timeout_s
    while not first.answers_within(min(slow_s, timeout.timeout_s)):
        if hedging.may_send():
            break
        if time.monotonic() > give_up_s:
            raise silent()
    else:
        return first
    second = pool.take_second(timeout, first)
    if second is None:
        return first
    unneeded = second
    try:
        with contextlib.suppress(OSError):  # the second one ended; the first may still answer
            send(second)
        answering = first_to_answer(first, second, timeout.timeout_s)
        if answering is second:
            unneeded = first
            first.address.was_slow()
    finally:
        pool.discard(unneeded)
    return answering


def _was_closed_idle(connection: Connection | None, error: Exception) -> bool:
    was_idle = connection is not None and connection.idle_since_s > 0
    return was_idle and isinstance(error, ConnectionResetError | BrokenPipeError)


def _send_head(signed: SignedRequest, pool: ConnectionPool, connection: Connection) -> bool:
    connection.send(pool.head(signed.method, signed.target, signed.headers))
    return True


def _send(connection: Connection, head: bytes, body: Body) -> bool:
    """Send; False if the response came before all was sent."""
    connection.send(head)
    # A server that refuses says so at once, reads no further and closes. Its response is worth
    # more than the broken pipe, which comes again if there is no response.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for piece in body:
            if not isinstance(piece, FileSlice):
                connection.send(piece)
            elif not _send_file(connection, piece):
                return False
    return True


def _send_file(connection: Connection, piece: FileSlice) -> bool:
    """Send a file; False if the response came before all was sent."""
    sent = _copy(connection, piece) if connection.is_tls else _sendfile(connection, piece)
    if sent is None:
        return False
    for _ in range(sent, piece.size_bytes, _SLICE_BYTES):  # the file has become shorter
        connection.send(bytes(min(_SLICE_BYTES, piece.size_bytes - sent)))
        sent += _SLICE_BYTES
    return True


def _copy(connection: Connection, piece: FileSlice) -> int:
    """Send up to the end of the file; the number of bytes sent."""
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
    """:func:`_copy` inside the kernel; None if the response came before the end.

    It polls, because a blocking sendfile(2) would wait for room in a connection that the server
    no longer reads from.
    """
    sent = 0
    with connection.unblocked() as (sock, timeout_s):
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT)
        while sent < piece.size_bytes:
            connection.deadline.check()
            events = poll.poll(timeout_s * 1000)
            if not events:
                if connection.is_moving():
                    continue
                raise TimeoutError("the server takes no more")
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
            connection.deadline.moved(count)
    return sent
