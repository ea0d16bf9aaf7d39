"""Uploads in parts to Google Cloud Storage: a resumable session.

Source: "Resumable uploads", https://cloud.google.com/storage/docs/performing-resumable-uploads.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.errors import NotFound, Unavailable, Unsupported
from sidecar.mounter.store.answers import Request
from sidecar.mounter.store.base import Condition, ObjectInfo
from sidecar.mounter.store.cloud import TRANSFER_TIMEOUT_S
from sidecar.mounter.store.retry import Again

if TYPE_CHECKING:
    from sidecar.mounter.store.gcs import GcsStore

CHUNK_BYTES = 256 * 1024
"""What every chunk of a session but the last must be a multiple of."""

_GOES_ON = 308

Pieces = tuple[memoryview | bytes, ...]


class Reply(NamedTuple):
    """An answer of the JSON API that is not an error."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """The content."""
        return json.loads(self.content)


class ResumableUpload:
    """An :class:`~sidecar.mounter.store.base.Upload` whose bytes go in order.

    Parts may be given by several threads at once: each waits until the ones before it are
    sent. A part that failed may be sent again; one that was sent cannot be replaced. When a
    part fails, those that wait behind it fail too, so that nobody waits for ever. A session
    checks no condition at its end, so it is checked just before, and another writer may come
    between.
    """

    def __init__(self, store: GcsStore, key: str, location: str) -> None:
        self._store = store
        self._key = key
        self._location = location
        self._turn = threading.Condition()
        self._next = 1
        self._sending = False
        self._failed = False
        self._sent_bytes = 0
        self._tail = b""  # what is not yet a whole chunk

    def put_part(self, number: int, data: memoryview | bytes) -> None:
        """As :meth:`Upload.put_part`, in the order of the numbers."""
        self._wait_for_turn(number)
        worked = False
        try:
            self._append(data)
            worked = True
        finally:
            with self._turn:
                self._sending = False
                self._failed = not worked
                self._next += worked
                self._turn.notify_all()

    def complete(self, condition: Condition | None = None) -> ObjectInfo:
        """As :meth:`Upload.complete`."""
        self._store.check_condition(self._key, condition)
        total_bytes = self._sent_bytes + len(self._tail)
        reply = self._send(Request("complete", self._key, condition), (self._tail,), total_bytes)
        return self._store.info(reply.json())

    def abort(self) -> None:
        """As :meth:`Upload.abort`."""
        try:
            self._store.send(Request("abort", self._key), "DELETE", self._location)
        except NotFound:
            return

    def _wait_for_turn(self, number: int) -> None:
        with self._turn:
            if number == self._next:
                self._failed = False
            self._turn.wait_for(
                lambda: self._failed or (number <= self._next and not self._sending)
            )
            if self._failed:
                raise Unavailable(f"part {number} of `{self._key}` waited for one that failed")
            if number < self._next:
                raise Unsupported(f"part {number} of `{self._key}` is sent and stays as it is")
            self._sending = True

    def _append(self, data: memoryview | bytes) -> None:
        view = memoryview(data).cast("B")
        ready = (len(self._tail) + len(view)) // CHUNK_BYTES * CHUNK_BYTES
        taken = max(0, ready - len(self._tail))
        if ready:
            self._send(Request("part", self._key), (self._tail, view[:taken]), None)
            self._sent_bytes += ready
            self._tail = b""
        self._tail += bytes(view[taken:])

    def _send(self, request: Request, body: Pieces, total_bytes: int | None) -> Reply:
        """Send the bytes from ``_sent_bytes`` on; again after a failure, only those missing.

        Args:
            total_bytes: the object's size with the last chunk, else None.
        """
        end = self._sent_bytes + sum(len(piece) for piece in body)
        total = "*" if total_bytes is None else str(total_bytes)
        tried = False

        def attempt() -> Reply:
            nonlocal tried
            first = self._sent_bytes
            if tried:
                # Answered with 308 and what arrived, or with the object. fake-gcs-server instead
                # ends the session here: there, no upload survives an outage.
                state = self._put(request, f"bytes */{total}", ())
                if state.status != _GOES_ON:
                    return state  # it was complete: only the answer was lost
                first = _persisted_bytes(state)
                if not self._sent_bytes <= first <= end:
                    raise self._store.place.protocol("an upload lost bytes that it had")
                if first == end and total_bytes is None:
                    return state
            tried = True
            sent = f"{first}-{end - 1}" if first < end else "*"
            rest = _without(body, first - self._sent_bytes)
            reply = self._put(request, f"bytes {sent}/{total}", rest)
            if (reply.status == _GOES_ON) != (total_bytes is None) or (
                reply.status == _GOES_ON and _persisted_bytes(reply) != end
            ):
                error = self._store.place.protocol("an upload took only some of the bytes")
                raise Again(error, "truncated")
            return reply

        try:
            return self._store.retry.run(request.operation, attempt)
        except NotFound:
            raise self._store.place.upload_lost(self._key) from None

    def _put(self, request: Request, content_range: str, body: Pieces) -> Reply:
        return self._store.send_once(
            request,
            "PUT",
            self._location,
            timeout_s=TRANSFER_TIMEOUT_S,
            content_range=content_range,
            body=body,
        )


def _without(body: Pieces, count: int) -> Pieces:
    """``body`` without its first ``count`` bytes."""
    rest: list[memoryview | bytes] = []
    for piece in body:
        view = memoryview(piece)
        rest.append(view[count:])
        count = max(0, count - len(view))
    return tuple(rest)


def _persisted_bytes(reply: Reply) -> int:
    """How many bytes a session has, from ``Range: bytes=0-N``."""
    _, _, last = reply.headers.get("range", "").partition("-")
    return int(last) + 1 if last.isdigit() else 0
