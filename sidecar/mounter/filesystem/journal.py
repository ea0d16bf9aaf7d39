"""What a worker must know of its predecessor to go on with the same mount.

The kernel refers to nodes and handles by the numbers that it was given. They outlive the
worker that gave them, so each is written down before the answer that gives it out: into a
shared mapping of a file, which costs no system call and is whole in the page cache when
the process is killed at any instruction. It is not meant to survive the machine.

The file begins with a header (magic, bytes in use); records follow, each its length and a
marshalled tuple. A record counts once the bytes in use cover it. When the file is full, a
snapshot of what is still held replaces it.
"""

from __future__ import annotations

import marshal
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.errors import StateUnusable

Record = tuple[Any, ...]

_HEADER = struct.Struct("8sQ")
_MAGIC = b"msjrnl01"
_USED_OFFSET = 8
_USED = struct.Struct("Q")  # native: one aligned store, where "<" stores byte by byte
_LENGTH = struct.Struct("<I")
FIRST_BYTES = 4 * 1024 * 1024


class Journal:
    """Append-only, bounded, and compacted by itself. Safe to use from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._snapshot: Callable[[], Iterable[Record]] = tuple
        self._map: mmap.mmap | None = None
        self._used = _HEADER.size

    def begin(self, snapshot: Callable[[], Iterable[Record]]) -> None:
        """Start to write, from a snapshot of what is held now.

        Args:
            snapshot: gives the records that describe everything held. Called with the
                journal's lock held, so it must take none; what changes meanwhile is written
                behind it.
        """
        with self._lock:
            self._snapshot = snapshot
            self._rewrite(0)

    def write(self, record: Record) -> None:
        """Append one record; it is safe from the death of this process when this returns.

        The change that it describes must have been made before, for the snapshot's sake.
        """
        data = marshal.dumps(record)
        with self._lock:
            if self._map is None:
                return  # nothing is given out before begin()
            end = self._used + _LENGTH.size + len(data)
            if end > len(self._map):
                self._rewrite(len(data))
                return  # the snapshot describes the state that the record led to
            _LENGTH.pack_into(self._map, self._used, len(data))
            self._map[self._used + _LENGTH.size : end] = data
            self._use(end)

    def read(self) -> Iterator[Record]:
        """The records of the predecessor; none where there was no predecessor.

        Raises StateUnusable where they are not all there.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        magic, used = _HEADER.unpack_from(content.ljust(_HEADER.size, b"\0"))
        if magic != _MAGIC or not _HEADER.size <= used <= len(content):
            raise StateUnusable(f"`{self._path}` is no journal")
        position = _HEADER.size
        while position < used:
            try:
                (length,) = _LENGTH.unpack_from(content, position)
                start, position = position + _LENGTH.size, position + _LENGTH.size + length
                record = marshal.loads(content[start:position])  # noqa: S302 - our own file
            except (struct.error, ValueError, EOFError, TypeError) as error:
                raise StateUnusable(f"`{self._path}` is damaged: {error}") from None
            yield record

    def _use(self, end: int) -> None:
        # A kill leaves the old or the new value.
        assert self._map is not None
        _USED.pack_into(self._map, _USED_OFFSET, end)
        self._used = end

    def _rewrite(self, room: int) -> None:
        """Replace the file by a snapshot, with space for as much again."""
        chunks: list[bytes] = []
        for record in self._snapshot():
            data = marshal.dumps(record)
            chunks += (_LENGTH.pack(len(data)), data)
        content = b"".join(chunks)
        size = max(FIRST_BYTES, 2 * (_HEADER.size + len(content) + room))
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # Not ftruncate: a mapped page that a full disk refuses is a SIGBUS (mmap(2)).
            os.posix_fallocate(descriptor, 0, size)
            mapped = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        mapped[: len(_MAGIC)] = _MAGIC
        mapped[_HEADER.size : _HEADER.size + len(content)] = content
        self._map = mapped
        self._use(_HEADER.size + len(content))
        temporary.replace(self._path)


class Unsaved(NamedTuple):
    """A file whose content only the spool has."""

    key: str
    spool_path: str
    attributes: dict[str, int]


class Held:
    """What the records of a predecessor add up to.

    Attributes:
        nodes: number to the node's last record, its lookups brought up to date.
        handles: number to (node, writable, backing id).
        directories: number to (node, keys of the lines that were given).
        last_node, last_handle, last_directory: the highest numbers ever given out. None is
            given twice: the kernel asks again for the release of what was released already,
            and tar(1) takes two files of one inode number for one file.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, Record] = {}
        self.handles: dict[int, tuple[int, bool, int]] = {}
        self.directories: dict[int, tuple[int, list[str]]] = {}
        self.last_node = self.last_handle = self.last_directory = 0

    @classmethod
    def read(cls, journal: Journal) -> Held:
        """Add up a journal."""
        held = cls()
        for record in journal.read():
            held._add(record)
        return held

    def unsaved(self) -> list[Unsaved]:
        """What is in the spool and not in the store."""
        found = []
        for record in self.nodes.values():
            if len(record) == _FILE_FIELDS:
                detached, _remote, attributes, spool_path, dirty, key = record[_DETACHED:]
                if spool_path is not None and dirty and not detached:
                    found.append(Unsaved(key, spool_path, attributes))
        return found

    def _add(self, record: Record) -> None:
        kind, number, *rest = record
        if kind == "last":
            self.last_node, self.last_handle, self.last_directory = number, *rest
        elif kind == "node":
            self.nodes[number] = record
            self.last_node = max(self.last_node, number)
        elif kind == "held":
            known = self.nodes.get(number)
            if known is not None:
                self.nodes[number] = (*known[:_LOOKUPS], rest[0], *known[_LOOKUPS + 1 :])
        elif kind == "dropped":
            self.nodes.pop(number, None)
        elif kind == "open":
            self.handles[number] = (rest[0], rest[1], rest[2])
            self.last_handle = max(self.last_handle, number)
        elif kind == "closed":
            self.handles.pop(number, None)
        elif kind == "opendir":
            self.directories[number] = (rest[0], list(rest[1]))
            self.last_directory = max(self.last_directory, number)
        elif kind == "lines":
            if number in self.directories:
                given = self.directories[number][1]
                given[rest[0] :] = rest[1]
        elif kind == "closeddir":
            self.directories.pop(number, None)


_LOOKUPS = 4  # positions in a node's record
_DETACHED = 5
_FILE_FIELDS = 11
