"""Bulk GET: ranges of pinned objects, straight into the caller's memory.

It does not go through the SDKs: they cost two to three times the CPU time for a large object
and nine times for a small one (see docs on performance). One request, one connection, one
``readinto``. No thread is started, so that a forked child can use it.
"""

from __future__ import annotations

import http.client
import re
import time
from typing import NamedTuple, Protocol, cast

from sidecar.errors import StoreError
from sidecar.mounter.store.answers import Answer, Place, Request, parse_retry_after
from sidecar.mounter.store.connections import (
    TRANSPORT_ERRORS,
    ConnectionPool,
    Endpoint,
    Headers,
    Response,
)
from sidecar.mounter.store.retry import Again, Retry

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_MAX_ERROR_BYTES = 64 * 1024


class Get(NamedTuple):
    """One GET, signed.

    Attributes:
        target: path and query.
        headers: all of them but ``Host`` where it is not signed.
    """

    target: str
    headers: dict[str, str]


class Dialect(Protocol):
    """What differs between stores."""

    def version(self, fields: Headers) -> str:
        """The version that an answer names, or an empty string."""

    def get(self, key: str, version: str, byte_range: str) -> Get:
        """A signed GET of ``byte_range`` (``bytes=a-b``), on condition of ``version``."""

    def error_code(self, fields: Headers, body: bytes) -> str:
        """The store's own code in an error answer, or an empty string."""

    def moved(self, fields: Headers) -> Endpoint | None:
        """Where to ask instead, when an error answer says so; :meth:`get` follows."""


class _Range:
    """What is still missing of one range; an attempt goes on where the last one stopped."""

    __slots__ = ("buffer", "key", "offset", "version")

    def __init__(self, key: str, version: str, offset: int, buffer: memoryview) -> None:
        self.key = key
        self.version = version
        self.offset = offset
        self.buffer = buffer

    def came(self, count: int) -> None:
        """The next ``count`` bytes are there."""
        self.offset += count
        self.buffer = self.buffer[count:]


class BulkReader:
    """Reads ranges over a pool of connections.

    Args:
        endpoint: where the requests go.
        dialect: how they look.
        place: for messages.
        retry: the store's policy.
    """

    def __init__(self, endpoint: Endpoint, dialect: Dialect, place: Place, retry: Retry) -> None:
        self._pool = ConnectionPool(endpoint)
        self._dialect = dialect
        self._place = place
        self._retry = retry

    def get_range(self, key: str, version: str, offset: int, buffer: memoryview) -> int:
        """As :meth:`sidecar.mounter.store.base.Store.get_range`."""
        if not len(buffer):
            return 0
        wanted = _Range(key, version, offset, buffer.cast("B"))
        self._retry.run("get", lambda: self._attempt(wanted))
        return wanted.offset - offset

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close_idle()

    def _attempt(self, wanted: _Range) -> None:
        """Get what is still missing of a range."""
        last = wanted.offset + len(wanted.buffer) - 1
        request = self._dialect.get(wanted.key, wanted.version, f"bytes={wanted.offset}-{last}")
        pool = self._pool
        while True:
            connection, reused = pool.take()
            response: http.client.HTTPResponse | None = None
            try:
                began_s = time.perf_counter()
                connection.request("GET", request.target, headers=request.headers)
                response = connection.getresponse()
                pool.patience.answered(time.perf_counter() - began_s)
                self._read(cast("Response", response), wanted)
                return
            except TRANSPORT_ERRORS as error:
                if isinstance(error, TimeoutError):
                    pool.patience.stalled()
                if reused and _was_closed_idle(error):
                    # A server may close an idle connection at any time; that is no outage.
                    pool.close_idle()
                    continue
                raise self._place.from_transport(error) from None
            finally:
                if response is not None and response.isclosed() and not response.will_close:
                    pool.give_back(connection)
                else:
                    pool.discard(connection)

    def _read(self, response: Response, wanted: _Range) -> None:
        """The body into the buffer."""
        status, key = response.status, wanted.key
        if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            # The range begins at or behind the end; of this version, as far as it is said.
            if self._dialect.version(response.fields):
                self._check_version(response.fields, wanted)
            response.read(_MAX_ERROR_BYTES)
            return
        if status not in {http.client.OK, http.client.PARTIAL_CONTENT}:
            raise self._error(response, key)
        self._check_version(response.fields, wanted)
        length = self._body_length(response, wanted.offset, len(wanted.buffer))
        while length:
            more = response.readinto(wanted.buffer[:length])
            if not more:
                error = self._place.protocol(f"`{key}` came only to byte {wanted.offset}")
                raise Again(error, "truncated")
            wanted.came(more)
            length -= more
        if response.chunked:
            response.read(1)  # the last, empty chunk

    def _error(self, response: Response, key: str) -> StoreError | Again:
        body = response.read(_MAX_ERROR_BYTES)
        moved = self._dialect.moved(response.fields)
        if moved is not None:
            self._pool = ConnectionPool(moved)
            return Again(self._place.protocol("it is elsewhere"), "server_error")
        code = self._dialect.error_code(response.fields, body)
        retry_after_s = parse_retry_after(response.fields.get("retry-after"))
        return self._place.from_answer(
            Answer(response.status, code, retry_after_s), Request("get", key)
        )

    def _check_version(self, fields: Headers, wanted: _Range) -> None:
        got = self._dialect.version(fields)
        if not got:
            raise self._place.protocol(f"the answer for `{wanted.key}` does not say its version")
        if got != wanted.version:
            # A store that ignored the condition.
            raise self._place.stale(wanted.key)

    def _body_length(self, response: Response, offset: int, asked: int) -> int:
        """How many bytes the body has, once it is certain that they begin at ``offset``."""
        content_range = response.fields.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(content_range)
        if match:
            first, last = int(match[1]), int(match[2])
            whole = asked if match[3] == "*" else min(asked, int(match[3]) - offset)
            if first == offset and last - first + 1 == whole:
                return whole
            raise self._place.protocol(f"asked for {asked} bytes at {offset}, got {content_range}")
        # Without Content-Range the body is the whole object, as far as anyone can tell.
        length = response.length
        if offset == 0 and length is not None and length <= asked:
            return length
        raise self._place.protocol("it does not answer ranges")


def _was_closed_idle(error: Exception) -> bool:
    return isinstance(error, ConnectionResetError | BrokenPipeError)  # RemoteDisconnected too
