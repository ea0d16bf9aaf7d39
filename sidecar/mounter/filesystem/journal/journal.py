"""The journal: what a worker must know of its predecessor to go on with the same mount.

The kernel refers to inodes and handles by the numbers that it was given. They outlive the
worker that gave them, so each is written down before the answer that hands it out: into a
shared mapping of a file, which costs no system call and is whole in the page cache when
the process is killed at any instruction. It need not survive the machine.

The file begins with magic and version. Frames follow, each of which is valid as a whole or not at
all; then zeros. When the file is full, it is replaced by a snapshot of what is still held.

If a worker dies before it answers a request, the kernel sends the request again. So the journal
also has what the dead worker handed out, began and did for it, under the request's number
(docs/decisions/0010-a-request-that-is-asked-again.md).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from sidecar.errors import StateUnusable
from sidecar.mounter.filesystem.journal.records import (
    Answered,
    Granted,
    GrantKind,
    Intended,
    Record,
    Replied,
    RequestRecord,
    Resent,
    Revoked,
)
from sidecar.mounter.filesystem.journal.stored_records import Nonsense, decode, encode
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.frames import Damage, frame, read_frames

NAME = "journal"
FIRST_BYTES = 4 * 1024 * 1024
MOST_BYTES = 1024 * 1024 * 1024
"""A longer journal is not read: four million files that are held take less."""

_MAGIC = b"msjrnl"
_VERSION = b"01"
_HEADER = _MAGIC + _VERSION
_BATCH_BYTES = 256 * 1024
"""The part of a snapshot in one frame: damage loses no more than that."""


class Journal:
    """Append-only, bounded, and compacted by itself. Safe to use from any thread."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory
        self._lock = threading.RLock()
        self._snapshot: Callable[[], Iterable[Record]] = tuple
        self._map: mmap.mmap | None = None
        self._used = len(_HEADER)
        self._size = 0
        self._serving = threading.local()
        self._requests: dict[int, list[RequestRecord]] = {}  # of requests without an answer yet
        self._inherited: set[int] = set()  # a predecessor's requests that were not sent again yet

    @property
    def path(self) -> Path:
        """The path of its file, for messages."""
        return self._directory.path / NAME

    def begin(self, snapshot: Callable[[], Iterable[Record]]) -> None:
        """Start to write, beginning with a snapshot of what is held now.

        Args:
            snapshot: returns the records that describe everything held. It is called with the
                journal's lock held, so it must take no lock. Changes meanwhile are written after
                it.
        """
        with self._lock:
            self._snapshot = snapshot
            self._rewrite(0)

    def write(self, record: Record) -> None:
        """Append one record. Once this returns, it survives the death of this process.

        The change that it describes must have been made before: when the file is full, a
        snapshot is written instead of the record.
        """
        self._append(frame(encode(record)))

    def grant(self, kind: GrantKind, numbers: Sequence[int], records: list[Record]) -> None:
        """Write what the answer to this thread's request hands out.

        Args:
            records: one for each of ``numbers``, which are of that kind.
        """
        request = self._request()
        if request is None:
            self._append(frame(b"".join(map(encode, records))))
            return
        granted = Granted(request, kind, list(numbers))
        data = frame(b"".join(map(encode, [granted, *records])))
        with self._lock:
            self._requests.setdefault(request, []).append(granted)
            self._append(data)

    # --- requests that the kernel may send again ------------------------------------------------

    def begin_request(self, request: int) -> None:
        """Note that this thread serves the request of this number from now on."""
        self._serving.request = request

    def end_request(self, request: int) -> None:
        """Note that the request was answered, so that the kernel will not send it again."""
        self._serving.request = None
        if request in self._requests:
            with self._lock:
                self._requests.pop(request, None)

    def intend(
        self, operation: str, inode: int | None = None, replaced_key: str | None = None
    ) -> None:
        """Write what this thread's request is about to change in the store.

        A successor that gets the request again finds it by :meth:`intent`. Outside a request
        nothing is written.
        """
        request = self._request()
        if request is not None:
            self._note(Intended(request, operation, inode, replaced_key))

    def intent(self) -> Intended | None:
        """What a dead worker was about to change for this thread's request."""
        request = self._request()
        if request is None:
            return None
        records = reversed(self._requests.get(request, ()))
        return next((record for record in records if isinstance(record, Intended)), None)

    def replied(self, request: int, errno: int, reply: bytes) -> None:
        """Note that the request made its change, and its answer, whoever sends that."""
        self._note(Replied(request, errno, reply))

    def resent(self, request: int, deaths: int, crashes: int) -> None:
        """Note that a request came again after so many deaths and crashes of workers."""
        with self._lock:
            self._inherited.discard(request)
            self._note(Resent(request, deaths, crashes))

    def revoke(self, request: int, kind: GrantKind, number: int) -> None:
        """Note that something handed out for a request is about to be released.

        This comes first, so that it is not done twice: a count too high costs memory, one too low
        is an error in a program.
        """
        self._note(Revoked(request, kind, number))

    def of_request(self, request: int) -> list[RequestRecord]:
        """The records of a request that is not answered yet."""
        return self._requests.get(request, [])

    def inherit(self, requests: dict[int, list[RequestRecord]]) -> None:
        """Take over a predecessor's records of requests."""
        self._requests = dict(requests)
        self._inherited = set(requests)

    def end_inherited(self) -> None:
        """Forget inherited requests: the kernel has sent everything again that had no answer."""
        with self._lock:
            answered = [request for request in self._inherited if request in self._requests]
            for request in answered:
                del self._requests[request]
            self._inherited.clear()
            if answered:
                self.write(Answered(answered))

    def _request(self) -> int | None:
        """The request that this thread serves."""
        return getattr(self._serving, "request", None)

    def _note(self, record: RequestRecord) -> None:
        with self._lock:
            self._requests.setdefault(record.request, []).append(record)
            self.write(record)

    # --- the file -------------------------------------------------------------------------------

    def _append(self, data: bytes) -> None:
        with self._lock:
            if self._map is None:
                return  # before begin() nothing is handed out
            end = self._used + len(data)
            if end > self._size:
                self._rewrite(len(data))
                return  # the snapshot already contains what the records say
            # A kill in the middle of this leaves a frame with a wrong checksum.
            self._map[self._used : end] = data
            self._used = end

    def read(self) -> Iterator[Record | Damage]:
        """The predecessor's records, and what is damaged; empty if there is no file.

        Raises StateUnusable if the file is no journal, or of an unknown version.
        """
        try:
            descriptor = self._directory.open_file(NAME)
        except FileNotFoundError:
            return
        path = self.path
        with open(descriptor, "rb") as file:
            size_bytes = os.fstat(descriptor).st_size
            header = file.read(len(_HEADER))
            version = header[len(_MAGIC) :]
            if header[: len(_MAGIC)] != _MAGIC:
                raise StateUnusable(f"`{path}` is no journal")
            if version != _VERSION:
                raise StateUnusable(
                    f"`{path}` is a journal of version {_text(version)}; known is {_text(_VERSION)}"
                )
            for found in read_frames(file, min(size_bytes, MOST_BYTES)):
                if isinstance(found, Damage):
                    yield found
                    continue
                offset, payload = found
                for record in decode(payload):
                    if isinstance(record, Nonsense):
                        yield Damage(offset, len(payload), record.why)
                    else:
                        yield record
        if size_bytes > MOST_BYTES:
            yield Damage(MOST_BYTES, size_bytes - MOST_BYTES, "no journal is so long")

    def set_aside(self) -> None:
        """Rename a file that cannot be read, so that no start looks for it. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._directory.set_aside(NAME)

    def _rewrite(self, room_bytes: int) -> None:
        """Replace the file by a snapshot, with room for as much again."""
        requests = [record for records in self._requests.values() for record in records]
        content = _HEADER + b"".join(_frames([*self._snapshot(), *requests]))
        used = len(content)
        size = max(FIRST_BYTES, 2 * (used + room_bytes))
        with self._directory.replacing(NAME) as descriptor:
            # Not ftruncate: if a full disk refuses a mapped page, that is a SIGBUS (mmap(2)).
            os.posix_fallocate(descriptor, 0, size)
            mapped = mmap.mmap(descriptor, size)
            mapped[:used] = content
        self._map, self._size, self._used = mapped, size, used


def _text(version: bytes) -> str:
    return ascii(version.decode("latin-1"))[1:-1]


def _frames(records: Iterable[Record]) -> Iterator[bytes]:
    batch: list[bytes] = []
    size_bytes = 0
    for record in records:
        stored = encode(record)
        batch.append(stored)
        size_bytes += len(stored)
        if size_bytes >= _BATCH_BYTES:
            yield frame(b"".join(batch))
            batch, size_bytes = [], 0
    if batch:
        yield frame(b"".join(batch))
