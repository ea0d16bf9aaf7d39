"""Objects and uploads of the benchmarks' S3, in memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import itemgetter
from pathlib import Path

BLOCK = bytes(range(256)) * 4096
"""The content of objects that nobody wrote, repeated: a MiB."""
_PUNCH_AND_KEEP_SIZE = 0x02 | 0x01
_libc = ctypes.CDLL(None, use_errno=True)


class Segment:
    """Consecutive bytes of the memory; given back once nothing refers to them."""

    def __init__(self, memory: Memory, start: int) -> None:
        self._memory = memory
        self.start = start
        self.size_bytes = 0

    @property
    def descriptor(self) -> int:
        """The file that has these bytes, from ``start`` on."""
        return self._memory.descriptor

    def append(self, data: memoryview | bytes) -> None:
        """Only the latest segment of a thread may grow: others begin far behind it."""
        done = 0
        while done < len(data):
            done += os.pwrite(self.descriptor, data[done:], self.start + self.size_bytes + done)
        self.size_bytes += done

    def __del__(self) -> None:
        self._memory.give_back(self.start, self.size_bytes)


class Memory:
    """A file without a name. It has only the pages that were written."""

    _APART_BYTES = 1 << 36
    """More than an object may have; a file has room for 2**27 of these."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("objects")
        self._starts = count(0, self._APART_BYTES)

    def segment(self) -> Segment:
        """An empty segment."""
        return Segment(self, next(self._starts))

    def give_back(self, start: int, size_bytes: int) -> None:
        """Forget the bytes."""
        _libc.fallocate(
            self.descriptor,
            _PUNCH_AND_KEEP_SIZE,
            ctypes.c_int64(start),
            ctypes.c_int64(size_bytes),
        )


@dataclass(frozen=True, slots=True)
class OfFile:
    """A file that is served where it is."""

    descriptor: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a segment or a file; several objects may share one.

    Attributes:
        skipped_bytes: how many there are before them.
    """

    segment: Segment | OfFile
    size_bytes: int
    skipped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Object:
    """The object of one name.

    Attributes:
        headers: sent with it, and sent with each answer.
    """

    pieces: Sequence[Piece]
    etag: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """The size of all pieces together."""
        return sum(piece.size_bytes for piece in self.pieces)

    def range(self, first: int, end: int) -> list[Piece]:
        """The bytes from ``first`` to ``end``."""
        found, start = [], 0
        for piece in self.pieces:
            low, high = max(first - start, 0), min(end - start, piece.size_bytes)
            if low < high:
                found.append(Piece(piece.segment, high - low, piece.skipped_bytes + low))
            start += piece.size_bytes
        return found


@dataclass(slots=True)
class Upload:
    """An upload in parts that is not complete."""

    key: str
    headers: dict[str, str]
    parts: dict[int, Object] = field(default_factory=dict)


class Objects:
    """The only bucket. Methods may be called by all threads."""

    def __init__(self) -> None:
        self.memory = Memory()
        self._lock = threading.Lock()
        self._objects: dict[str, Object] = {}
        self._uploads: dict[str, Upload] = {}
        self._numbers = count(1)

    def fill(self, large: int, size_bytes: int, small: int, small_size_bytes: int) -> None:
        """Make ``large-0``, … and ``small/0``, …, which share their bytes. Raises OSError."""
        segment = self.memory.segment()
        while segment.size_bytes < max(size_bytes * bool(large), small_size_bytes * bool(small)):
            segment.append(BLOCK)
        sizes = {f"large-{number}": size_bytes for number in range(large)}
        sizes |= {f"small/{number}": small_size_bytes for number in range(small)}
        for key, size in sizes.items():
            self.put(key, self.made([Piece(segment, size)], {}))

    def load(self, folder: Path) -> None:
        """Make an object of each file below the folder; small ones are copied. Raises OSError."""
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            size_bytes = path.stat().st_size
            place: Segment | OfFile
            if size_bytes > len(BLOCK):
                place = OfFile(os.open(path, os.O_RDONLY))
            else:
                place = self.memory.segment()
                place.append(path.read_bytes())
            made = self.made([Piece(place, size_bytes)], {})
            self.put(str(path.relative_to(folder)), made)

    def made(self, pieces: Sequence[Piece], headers: dict[str, str]) -> Object:
        """An object with its own ETag, whose form shows that it is no digest."""
        return Object(pieces, f'"{next(self._numbers):032x}-1"', headers)

    def get(self, key: str) -> Object | None:
        """The object of a name."""
        return self._objects.get(key)

    def every(self) -> list[tuple[str, Object]]:
        """All keys and objects, in the order of a listing."""
        with self._lock:
            return sorted(self._objects.items(), key=itemgetter(0))

    def put(
        self, key: str, new: Object, *, expected: str | None = None, absent: bool = False
    ) -> bool:
        """Replace an object if it has the ``expected`` ETag, or if there is none; False if not."""
        with self._lock:
            there = self._objects.get(key)
            if (absent and there) or (expected and (there is None or there.etag != expected)):
                return False
            self._objects[key] = new
            return True

    def delete(self, keys: Iterable[str]) -> None:
        """Delete those that are there."""
        with self._lock:
            for key in keys:
                self._objects.pop(key, None)

    def begin(self, key: str, headers: dict[str, str]) -> str:
        """An upload in parts; returns its id."""
        upload_id = f"upload-{next(self._numbers)}"
        self._uploads[upload_id] = Upload(key, headers)
        return upload_id

    def upload(self, upload_id: str) -> Upload | None:
        """An upload that was neither completed nor given up."""
        return self._uploads.get(upload_id)

    def end(self, upload_id: str) -> None:
        """Forget an upload."""
        with contextlib.suppress(KeyError):
            del self._uploads[upload_id]
