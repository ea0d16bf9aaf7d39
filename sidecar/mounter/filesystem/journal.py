"""The journal: what a worker must know of its predecessor to go on with the same mount.

The kernel refers to inodes and handles by the numbers that it was given. They outlive the
worker that gave them, so each is written down before the answer that hands it out: into a
shared mapping of a file, which costs no system call and is whole in the page cache when
the process is killed at any instruction. It need not survive the machine.

The file begins with a header: magic, version, bytes in use. Batches follow, each with its
length and a marshalled list of records. A batch counts, as a whole, once the bytes in use cover
it. When the file is full, a snapshot of what is still held replaces it.

The kernel sends a request again if its worker dies before it answers. What the dead worker
handed out, began and did for it is therefore written down under the request's number
(docs/decisions/0010-a-request-that-is-asked-again.md).

What records mean for inodes and handles does not belong here.
"""

from __future__ import annotations

import marshal
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from sidecar.errors import StateUnusable
from sidecar.mounter.filesystem.records import (
    TAGS,
    Answered,
    Granted,
    GrantKind,
    Intended,
    Record,
    Replied,
    RequestRecord,
    Resent,
    Revoked,
    StoredRecord,
    from_stored,
    from_version_2,
)

FIRST_BYTES = 4 * 1024 * 1024

_HEADER = struct.Struct("6s2sQ")
_MAGIC = b"msjrnl"
_VERSION = b"03"
_READERS: dict[bytes, Callable[[StoredRecord], Record]] = {
    _VERSION: from_stored,
    b"02": from_version_2,
}
_USED_OFFSET = 8
_USED = struct.Struct("Q")  # native: one aligned store, where "<" stores byte by byte
_LENGTH = struct.Struct("<I")
_HEADS = {type_: (tag,) for type_, tag in TAGS.items()}
"""What is put before a record's fields. The sum is a plain tuple: marshal takes no other."""


class Journal:
    """Append-only, bounded, and compacted by itself. Safe to use from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._snapshot: Callable[[], Iterable[Record]] = tuple
        self._map: mmap.mmap | None = None
        self._used = _HEADER.size
        self._size = 0
        self._serving = threading.local()
        self._requests: dict[int, list[RequestRecord]] = {}  # of those that were not answered yet
        self._inherited: set[int] = set()  # those of a predecessor that were not sent again yet

    def begin(self, snapshot: Callable[[], Iterable[Record]]) -> None:
        """Start to write, from a snapshot of what is held now.

        Args:
            snapshot: returns the records that describe everything held. It is called with the
                journal's lock held, so it must take no lock. What changes meanwhile is written
                after it.
        """
        with self._lock:
            self._snapshot = snapshot
            self._rewrite(0)

    def write(self, record: Record) -> None:
        """Append one record. It survives the death of this process once this returns.

        The change that it describes must have been made before: when the file is full, a
        snapshot is written instead of the record.
        """
        self._append(marshal.dumps([_HEADS[type(record)] + record]))

    def grant(self, kind: GrantKind, numbers: Sequence[int], records: list[Record]) -> None:
        """:meth:`write` of what the answer to the request of this thread hands out.

        Args:
            records: one for each of ``numbers``, which are of that kind.
        """
        request = self._request()
        if request is None:
            self._append(_stored(records))
            return
        granted = Granted(request, kind, list(numbers))
        data = _stored([granted, *records])
        with self._lock:
            self._requests.setdefault(request, []).append(granted)
            self._append(data)

    # --- requests that the kernel may send again ------------------------------------------------

    def begin_request(self, request: int) -> None:
        """This thread serves the request of this number from now on."""
        self._serving.request = request

    def end_request(self, request: int) -> None:
        """It was answered, so the kernel will not send it again."""
        self._serving.request = None
        if request in self._requests:
            with self._lock:
                self._requests.pop(request, None)

    def intend(
        self, operation: str, inode: int | None = None, replaced_key: str | None = None
    ) -> None:
        """Say what the request of this thread is about to change in the store.

        A successor that is sent the request again finds it in :meth:`intent`. Outside a
        request there is nothing to say.
        """
        request = self._request()
        if request is not None:
            self._note(Intended(request, operation, inode, replaced_key))

    def intent(self) -> Intended | None:
        """What a dead worker was about to change for the request of this thread."""
        request = self._request()
        if request is None:
            return None
        records = reversed(self._requests.get(request, ()))
        return next((record for record in records if isinstance(record, Intended)), None)

    def replied(self, request: int, errno: int, reply: bytes) -> None:
        """The request made its change; this is its answer, whoever sends it."""
        self._note(Replied(request, errno, reply))

    def resent(self, request: int, deaths: int, crashes: int) -> None:
        """The kernel sent a request again after so many deaths and crashes of workers."""
        with self._lock:
            self._inherited.discard(request)
            self._note(Resent(request, deaths, crashes))

    def revoke(self, request: int, kind: GrantKind, number: int) -> None:
        """What was handed out for a request is about to be released.

        Written before, so that it is not done twice: a count too high costs memory, one too low
        is an error in a program.
        """
        self._note(Revoked(request, kind, number))

    def of_request(self, request: int) -> list[RequestRecord]:
        """What was written about a request that is not answered yet."""
        return self._requests.get(request, [])

    def inherit(self, requests: dict[int, list[RequestRecord]]) -> None:
        """Take over what a predecessor wrote about requests."""
        self._requests = dict(requests)
        self._inherited = set(requests)

    def end_inherited(self) -> None:
        """The kernel has sent everything again: what it did not send had been answered."""
        with self._lock:
            answered = [request for request in self._inherited if request in self._requests]
            for request in answered:
                del self._requests[request]
            self._inherited.clear()
            if answered:
                self.write(Answered(answered))

    def _request(self) -> int | None:
        """What this thread serves."""
        return getattr(self._serving, "request", None)

    def _note(self, record: RequestRecord) -> None:
        with self._lock:
            self._requests.setdefault(record.request, []).append(record)
            self.write(record)

    # --- the file -------------------------------------------------------------------------------

    def _append(self, data: bytes) -> None:
        with self._lock:
            if self._map is None:
                return  # nothing is handed out before begin()
            end = self._used + _LENGTH.size + len(data)
            if end > self._size:
                self._rewrite(len(data))
                return  # the snapshot describes the state that the records led to
            self._map[self._used : end] = _LENGTH.pack(len(data)) + data
            # A kill leaves the old or the new value.
            _USED.pack_into(self._map, _USED_OFFSET, end)
            self._used = end

    def read(self) -> Iterator[Record]:
        """The records of the predecessor; none where there is no file.

        Raises StateUnusable for a file that is damaged, or of a version not known here, or
        that is no journal.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        magic, version, used = _HEADER.unpack_from(content.ljust(_HEADER.size, b"\0"))
        if magic != _MAGIC:
            raise StateUnusable(f"`{self._path}` is no journal")
        if version not in _READERS:
            known = " and ".join(sorted(map(_text, _READERS)))
            raise StateUnusable(
                f"`{self._path}` is a journal of version {_text(version)}; known are {known}"
            )
        if not _HEADER.size <= used <= len(content):
            raise StateUnusable(
                f"`{self._path}` is damaged: {len(content)} bytes, of which {used} are in use"
            )
        try:
            yield from _records_in(memoryview(content)[:used], _READERS[version])
        except (struct.error, ValueError, EOFError, TypeError, KeyError, MemoryError) as error:
            raise StateUnusable(f"`{self._path}` is damaged: {error}") from None

    def _rewrite(self, room_bytes: int) -> None:
        """Replace the file by a snapshot, with space for as much again."""
        requests = [record for records in self._requests.values() for record in records]
        data = _stored([*self._snapshot(), *requests])
        content = _LENGTH.pack(len(data)) + data
        size = max(FIRST_BYTES, 2 * (_HEADER.size + len(content) + room_bytes))
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # Not ftruncate: a mapped page that a full disk refuses is a SIGBUS (mmap(2)).
            os.posix_fallocate(descriptor, 0, size)
            mapped = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        used = _HEADER.size + len(content)
        mapped[:used] = _HEADER.pack(_MAGIC, _VERSION, used) + content
        self._map, self._size, self._used = mapped, size, used
        temporary.replace(self._path)


def _text(version: bytes) -> str:
    return version.decode("ascii", "replace")


def _stored(records: Iterable[Record]) -> bytes:
    return marshal.dumps([_HEADS[type(record)] + record for record in records])


def _records_in(content: memoryview, read: Callable[[StoredRecord], Record]) -> Iterator[Record]:
    position = _HEADER.size
    while position < len(content):
        (length,) = _LENGTH.unpack_from(content, position)
        start, position = position + _LENGTH.size, position + _LENGTH.size + length
        for stored in marshal.loads(content[start:position]):  # noqa: S302 - our own file
            yield read(stored)
