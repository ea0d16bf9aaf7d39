"""Reads ranges of pinned versions straight into the caller's memory.

An SDK takes two to three times the CPU time for a large object, nine times for a small one.
"""

from __future__ import annotations

import contextlib
import re
from http import HTTPStatus

from sidecar.mounter.store.http.client import HttpClient
from sidecar.mounter.store.http.connection import TRANSPORT_ERRORS, Response
from sidecar.mounter.store.http.fields import Headers
from sidecar.mounter.store.http.retry import Retry, Retryable
from sidecar.mounter.store.http.timeouts import AdaptiveTimeout
from sidecar.mounter.store.interface import Arrived
from sidecar.mounter.store.request_builder import RequestBuilder
from sidecar.mounter.store.store_errors import Call, StoreErrors
from sidecar.units import KIB, MIB

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16}|\*)")
_ACCEPTED = {
    HTTPStatus.OK,
    HTTPStatus.PARTIAL_CONTENT,
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
}
STEP_BYTES = MIB
"""How often a caller who wants to know what has arrived is told."""
_MAX_ERROR_BYTES = 64 * KIB
_SHOWN_CHARACTERS = 64


class _Range:
    """The rest of one range: an attempt continues where the last one stopped."""

    __slots__ = ("_arrived", "_start", "buffer", "key", "offset", "version")

    def __init__(
        self,
        key: str,
        version: str | None,
        offset: int,
        buffer: memoryview,
        arrived: Arrived | None,
    ) -> None:
        self.key = key
        self.version = version
        self.offset = self._start = offset
        self.buffer = buffer
        self._arrived = arrived

    @property
    def header(self) -> str:
        """The value of the ``Range`` header."""
        return f"bytes={self.offset}-{self.offset + len(self.buffer) - 1}"

    @property
    def step_bytes(self) -> int:
        """How much to receive at once."""
        return len(self.buffer) if self._arrived is None else STEP_BYTES

    def received(self, count: int) -> None:
        """The next ``count`` bytes are in the buffer."""
        self.offset += count
        self.buffer = self.buffer[count:]
        if self._arrived is not None:
            self._arrived(self.offset - self._start)


class RangeReader:
    """Reads ranges.

    Args:
        client: sends the requests.
        requests: builds them.
        errors: makes the errors.
        retry: the store's policy.
    """

    def __init__(
        self,
        client: HttpClient[Call],
        requests: RequestBuilder,
        errors: StoreErrors,
        retry: Retry,
    ) -> None:
        self._client = client
        self._requests = requests
        self._errors = errors
        self._retry = retry
        self._timeout = AdaptiveTimeout()

    def get_range(
        self,
        key: str,
        version: str | None,
        offset: int,
        buffer: memoryview,
        arrived: Arrived | None = None,
    ) -> int:
        """As :meth:`sidecar.mounter.store.interface.Store.get_range`."""
        if not len(buffer):
            return 0
        wanted = _Range(key, version, offset, buffer.cast("B"), arrived)
        self._retry.run("get", lambda: self._attempt(wanted))
        return wanted.offset - offset

    def _attempt(self, wanted: _Range) -> None:
        self._client.receive(
            Call("get", wanted.key),
            lambda: self._requests.get(wanted.key, wanted.version, wanted.header),
            lambda response: self._read(response, wanted),
            accepted=_ACCEPTED,
            timeout=self._timeout,
            hedging=self._retry.hedging("get"),
        )

    def _read(self, response: Response, wanted: _Range) -> None:
        """Receive the body into the buffer."""
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            # The range begins at or after the end, of this version if the response names one.
            if self._requests.version(response.fields):
                self._check_version(response.fields, wanted)
            response.read(_MAX_ERROR_BYTES)
            return
        self._check_version(response.fields, wanted)
        length = self._body_length(response, wanted.offset, len(wanted.buffer))
        wanted.received(0)
        while length:
            more = response.readinto(wanted.buffer[: min(length, wanted.step_bytes)])
            if not more:
                error = self._errors.protocol(f"`{wanted.key}` came only to byte {wanted.offset}")
                raise Retryable(error, "truncated")
            wanted.received(more)
            length -= more
        if response.chunked:
            with contextlib.suppress(*TRANSPORT_ERRORS):  # all content has arrived
                response.read(1)  # the last, empty chunk, and its trailer

    def _check_version(self, fields: Headers, wanted: _Range) -> None:
        if wanted.version is None:
            return
        got = self._requests.version(fields)
        if not got:
            raise self._errors.protocol(f"the answer for `{wanted.key}` does not say its version")
        if got != wanted.version:
            # The store ignored the condition.
            raise self._errors.stale(wanted.key)

    def _body_length(self, response: Response, offset: int, asked: int) -> int:
        """The length of the body. Raises unless it is of the bytes at ``offset``."""
        content_range = response.fields.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(content_range)
        if match:
            first, last = int(match[1]), int(match[2])
            whole = asked if match[3] == "*" else min(asked, int(match[3]) - offset)
            if first == offset and last - first + 1 == whole:
                return whole
        if content_range or response.status == HTTPStatus.PARTIAL_CONTENT:
            got = content_range[:_SHOWN_CHARACTERS]
            raise self._errors.protocol(f"asked for {asked} bytes at {offset}, got `{got}`")
        # Without Content-Range the body must be the whole object.
        length = response.length
        if offset == 0 and length is not None and length <= asked:
            return length
        raise self._errors.protocol("it does not answer ranges")
