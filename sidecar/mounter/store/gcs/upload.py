"""Uploads to Google Cloud Storage whose parts go in order: a resumable session. Imports no SDK.

For servers without :mod:`.multipart`, and for properties that its headers cannot carry.

Source: "Resumable uploads", https://cloud.google.com/storage/docs/performing-resumable-uploads.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sidecar.errors import NotFound, Unavailable, Unsupported
from sidecar.mounter.store.gcs.client import GcsClient
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.http.signed_request import BufferedResponse
from sidecar.mounter.store.http.values import parse_number
from sidecar.mounter.store.interface import Condition, Content, FileSlice, ObjectInfo
from sidecar.mounter.store.store_errors import Call
from sidecar.units import KIB

CHUNK_BYTES = 256 * KIB
"""Every chunk of a session but the last must be a multiple of this."""

_GOES_ON = 308

Pieces = Sequence[Content]


class ResumableUpload:
    """An :class:`~sidecar.mounter.store.interface.Upload` whose bytes go in order.

    Several threads may send parts at once: each waits until the parts before it are sent, and all
    that wait then go in one request, since each request takes a round trip. A part that failed may
    be sent again; one that was sent cannot be replaced. When a part fails, those that wait for it
    fail, too, so that no thread waits for ever. A session checks no condition at its end. So the
    condition is checked just before, and another writer may come between.

    Args:
        location: path and query of the session.
        sent: sizes of the parts that an ended process had sent, maybe not all of them. None for a
            new session.
    """

    ordered_parts = True

    def __init__(
        self,
        store: GcsClient,
        key: str,
        location: str,
        metadata: Mapping[str, str],
        sent: Sequence[int] | None,
    ) -> None:
        self._store = store
        self._key = key
        self._location = location
        self._metadata = metadata
        self._turn = threading.Condition()
        self._waiting: dict[int, Content] = {}
        self._next = len(sent or ()) + 1
        self._sending = False
        self._failed = False
        self._sent_bytes = sum(sent or ())
        # Whether the session has exactly what was sent. If not, it is asked before the next piece.
        self._sure = sent is None
        self._tail: Pieces = ()  # bytes that are no whole chunk yet

    @property
    def state(self) -> Mapping[str, Any]:
        """As :attr:`Upload.state`."""
        return {"session": self._location, "metadata": dict(self._metadata)}

    def put_part(self, number: int, content: Content) -> str:
        """As :meth:`Upload.put_part`, in the order of the numbers."""
        sent = self._wait_for_turn(number, content)
        worked = False
        try:
            if sent:
                self._append(sent)
            worked = True
        finally:
            if sent:
                with self._turn:
                    self._sending = False
                    self._failed = not worked
                    self._next += len(sent) if worked else 0
                    self._turn.notify_all()
        return ""

    def complete(
        self,
        condition: Condition | None = None,
        *,
        parts: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Upload.complete`."""
        if parts is not None and parts != self._next - 1:
            raise Unsupported(f"`{self._key}` cannot be made of some of the parts that were sent")
        self._store.check_condition(self._key, condition)
        total_bytes = self._sent_bytes + _length(self._tail)
        reply = self._send(Call("complete", self._key, condition), self._tail, total_bytes)
        made = self._store.info("complete", reply)
        if metadata is not None and dict(metadata) != dict(self._metadata):
            return self._store.set_metadata(made, metadata)
        return made

    def abort(self) -> None:
        """As :meth:`Upload.abort`."""
        try:
            self._store.abort(Call("abort", self._key), self._location)
        except NotFound:
            return

    def _wait_for_turn(self, number: int, content: Content) -> Pieces:
        """What this thread sends: its part and those after it; nothing if another one sent it."""
        with self._turn:
            if number < self._next:
                raise Unsupported(f"part {number} of `{self._key}` is sent and stays as it is")
            if number == self._next:
                self._failed = False
            self._waiting[number] = content
            try:
                self._turn.wait_for(
                    lambda: self._failed or number < self._next or self._is_turn_of(number)
                )
                if number < self._next:
                    return ()
                if self._failed:
                    raise Unavailable(f"part {number} of `{self._key}` waited for one that failed")
                self._sending = True
                return [self._waiting[one] for one in self._waiting_from(number)]
            finally:
                del self._waiting[number]

    def _is_turn_of(self, number: int) -> bool:
        return number == self._next and not self._sending

    def _waiting_from(self, number: int) -> Iterator[int]:
        """The waiting parts, up to the first gap."""
        return itertools.takewhile(self._waiting.__contains__, itertools.count(number))

    def _append(self, content: Pieces) -> None:
        waiting: Pieces = (*self._tail, *content)
        ready = _length(waiting) // CHUNK_BYTES * CHUNK_BYTES
        if ready:
            body, rest = _split(waiting, ready)
            self._send(Call("part", self._key), body, None)
            self._sent_bytes += ready
        else:
            rest = waiting
        # All parts but the last are whole chunks, so the rest is small, and is kept in memory.
        self._tail = tuple(map(_in_memory, rest))

    def _send(self, call: Call, body: Pieces, total_bytes: int | None) -> BufferedResponse:
        """Send the bytes from ``_sent_bytes`` on; again after a failure, only those missing.

        Args:
            total_bytes: the object's size with the last chunk, else None.
        """
        end = self._sent_bytes + _length(body)
        total = "*" if total_bytes is None else str(total_bytes)

        def attempt() -> BufferedResponse:
            first = self._sent_bytes
            if not self._sure:
                # The answer is 308 and what arrived, or the object. fake-gcs-server instead ends
                # the session here: with it, no upload survives an outage.
                state = self._put(call, f"bytes */{total}", ())
                if state.status != _GOES_ON:
                    return state  # the upload was finished; only the response was lost
                first = _persisted_bytes(state)
                if first < self._sent_bytes or (first > end and total_bytes is not None):
                    raise self._store.errors.protocol("an upload has other bytes than were sent")
                if first >= end and total_bytes is None:
                    self._sure = first == end  # an ended process may have sent more at once
                    return state
            self._sure = False
            sent = f"{first}-{end - 1}" if first < end else "*"
            _, rest = _split(body, first - self._sent_bytes)
            reply = self._put(call, f"bytes {sent}/{total}", rest)
            if (reply.status == _GOES_ON) != (total_bytes is None) or (
                reply.status == _GOES_ON and _persisted_bytes(reply) != end
            ):
                error = self._store.errors.protocol("an upload took only some of the bytes")
                raise Retryable(error, "truncated")
            self._sure = True
            return reply

        try:
            return self._store.retry.run(call.operation, attempt)
        except NotFound:
            raise self._store.errors.upload_lost(self._key) from None

    def _put(self, call: Call, content_range: str, body: Pieces) -> BufferedResponse:
        return self._store.put_chunk(call, self._location, content_range, body)


def _length(pieces: Pieces) -> int:
    return sum(map(len, pieces))


def _split(pieces: Pieces, count: int) -> tuple[Pieces, Pieces]:
    """The first ``count`` bytes, and the rest."""
    first: list[Content] = []
    rest: list[Content] = []
    for piece in pieces:
        taken = min(count, len(piece))
        count -= taken
        if taken:
            first.append(_part(piece, 0, taken))
        if taken < len(piece):
            rest.append(_part(piece, taken, len(piece) - taken))
    return first, rest


def _part(piece: Content, start: int, size_bytes: int) -> Content:
    if isinstance(piece, FileSlice):
        return piece.part(start, size_bytes)
    return memoryview(piece).cast("B")[start : start + size_bytes]


def _in_memory(piece: Content) -> bytes:
    if isinstance(piece, FileSlice):
        return os.pread(piece.fd, piece.size_bytes, piece.offset).ljust(piece.size_bytes, b"\0")
    return bytes(piece)


def _persisted_bytes(reply: BufferedResponse) -> int:
    """How many bytes a session has, from ``Range: bytes=0-N``."""
    _, _, last = reply.headers.get("range", "").partition("-")
    try:
        return parse_number(last) + 1
    except ValueError:
        return 0
