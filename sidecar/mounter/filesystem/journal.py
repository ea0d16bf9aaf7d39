"""What a worker must know of its predecessor to go on with the same mount.

The kernel refers to inodes and handles by the numbers that it was given. They outlive the
worker that gave them, so each is written down before the answer that gives it out: into a
shared mapping of a file, which costs no system call and is whole in the page cache when
the process is killed at any instruction. It is not meant to survive the machine.

The file begins with a header (magic, bytes in use); what was written at once follows, each
time its length and a marshalled list of records (tuples). It counts once the bytes in use
cover it, all or nothing. When the file is full, a snapshot of what is still held replaces it.

A request whose worker dies before its answer left is asked again of the next one. What the
dead worker had given out for it, had begun and had done is therefore written down under the
request's number (docs/decisions/0010-a-request-that-is-asked-again.md).
"""

from __future__ import annotations

import marshal
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.errors import StateUnusable

Record = tuple[Any, ...]

_HEADER = struct.Struct("8sQ")
_MAGIC = b"msjrnl02"
_USED_OFFSET = 8
_USED = struct.Struct("Q")  # native: one aligned store, where "<" stores byte by byte
_LENGTH = struct.Struct("<I")
FIRST_BYTES = 4 * 1024 * 1024


MOST_CRASHES = 3
"""Workers that may end by themselves over one request. The next one refuses it."""
MOST_DEATHS = 30
"""The same for workers that were killed, by whoever: out of memory, perhaps, and perhaps not."""

LOOKUP, HANDLE, READING = "lookup", "handle", "reading"
"""What an answer gives out: a count of an inode, an open file, an open directory."""


class ReplayedRequest:
    """One request that is asked again: what its earlier workers made of it.

    Attributes:
        given: (kind, number) of what was given out for it; the answer never left.
        intent: what it was about to do, in the words of who does it; None before it began.
        answer: (errno, reply) once it was done.
        deaths, crashes: of the workers that had it, and those that ended by themselves.
    """

    def __init__(self) -> None:
        self.given: list[tuple[str, int]] = []
        self.intent: Record | None = None
        self.answer: tuple[int, bytes] | None = None
        self.deaths = self.crashes = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether it has ended more workers than it may."""
        return self.crashes >= MOST_CRASHES or self.deaths >= MOST_DEATHS

    def add(self, record: Record) -> None:
        """Take in a record about the request: its kind, its number, and the rest."""
        kind, _, *rest = record
        if kind == "gave":
            self.given += [(rest[0], number) for number in rest[1]]
        elif kind == "took":
            if (rest[0], rest[1]) in self.given:
                self.given.remove((rest[0], rest[1]))
        elif kind == "intent":
            self.intent = rest[0]
        elif kind == "done":
            self.answer = (rest[0], rest[1])
        elif kind == "again":
            self.deaths, self.crashes = rest[0], rest[1]

    def records(self, unique: int) -> Iterator[Record]:
        """All of it again, for a snapshot."""
        for kind, number in list(self.given):
            yield ("gave", unique, kind, [number])
        if self.intent is not None:
            yield ("intent", unique, self.intent)
        if self.answer is not None:
            yield ("done", unique, *self.answer)
        if self.deaths:
            yield ("again", unique, self.deaths, self.crashes)


_ABOUT_REQUESTS = frozenset(("gave", "took", "intent", "done", "again"))


class Journal:
    """Append-only, bounded, and compacted by itself. Safe to use from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._snapshot: Callable[[], Iterable[Record]] = tuple
        self._map: mmap.mmap | None = None
        self._used = _HEADER.size
        self._serving = threading.local()
        self._asked: dict[int, ReplayedRequest] = {}  # requests in flight that need to be known
        self._left: set[int] = set()  # those of a predecessor that were not asked again yet

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
        self._append([record])

    def give(self, kind: str, numbers: Sequence[int], records: list[Record]) -> None:
        """:meth:`write` of what the answer to the request that this thread serves gives out.

        Args:
            kind: LOOKUP, HANDLE or READING.
            records: one for each of ``numbers``, which are of that kind.
        """
        unique = getattr(self._serving, "unique", 0)
        if not unique:
            self._append(records)
            return
        gave = ("gave", unique, kind, list(numbers))
        with self._lock:
            self._asked.setdefault(unique, ReplayedRequest()).add(gave)
            self._append([gave, *records])

    # --- requests that may be asked again ---------------------------------------------------

    def begin_request(self, unique: int) -> None:
        """This thread serves the request of this number from now on."""
        self._serving.unique = unique

    def end_request(self, unique: int) -> None:
        """It was answered, so it will not be asked again."""
        self._serving.unique = 0
        if unique in self._asked:
            with self._lock:
                self._asked.pop(unique, None)

    def intend(self, intent: Record) -> None:
        """Say what the request of this thread is about to do in the store.

        Its successor finds the same words in :meth:`intent`. Nothing outside a request.
        """
        unique = getattr(self._serving, "unique", 0)
        if unique:
            self._note_request(("intent", unique, intent))

    def intent(self) -> Record | None:
        """What a dead worker was about to do for the request that this thread serves."""
        asked = self._asked.get(getattr(self._serving, "unique", 0))
        return asked.intent if asked is not None else None

    def done(self, unique: int, errno: int, reply: bytes) -> None:
        """The request changed something; this is the answer, whoever gives it."""
        self._note_request(("done", unique, errno, reply))

    def asked_again(self, unique: int, *, crashed: bool) -> ReplayedRequest:
        """The kernel asks a request again: what is known of it.

        Args:
            crashed: the last worker ended by itself, and was not killed.
        """
        with self._lock:
            self._left.discard(unique)
            asked = self._asked.setdefault(unique, ReplayedRequest())
            again = ("again", unique, asked.deaths + 1, asked.crashes + crashed)
            self._note_request(again)
            return asked

    def given(self, unique: int) -> ReplayedRequest:
        """What was given out for a request that is being answered."""
        return self._asked.get(unique) or ReplayedRequest()

    def take_back(self, unique: int, kind: str, number: int) -> None:
        """What was given out for a request is about to be taken back.

        Before, so that it is not done twice: a count too high costs memory, one too low is an
        error in a program.
        """
        self._note_request(("took", unique, kind, number))

    def adopt(self, asked: dict[int, ReplayedRequest]) -> None:
        """Take over the requests of a predecessor."""
        self._asked = dict(asked)
        self._left = set(asked)

    def forget_answered(self) -> list[Record]:
        """Nothing will be asked again any more: what was not, was answered.

        Returns what was intended and never asked again: its program was killed meanwhile.
        """
        with self._lock:
            numbers = [unique for unique in self._left if unique in self._asked]
            left = [self._asked.pop(unique) for unique in numbers]
            self._left.clear()
            if left:
                self._append([("answered", numbers)])
        return [one.intent for one in left if one.intent is not None and one.answer is None]

    def _note_request(self, record: Record) -> None:
        with self._lock:
            self._asked.setdefault(record[1], ReplayedRequest()).add(record)
            self._append([record])

    # --- the file -----------------------------------------------------------------------------

    def _append(self, records: list[Record]) -> None:
        data = marshal.dumps(records)
        with self._lock:
            if self._map is None:
                return  # nothing is given out before begin()
            end = self._used + _LENGTH.size + len(data)
            if end > len(self._map):
                self._rewrite(len(data))
                return  # the snapshot describes the state that the records led to
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
                records = marshal.loads(content[start:position])  # noqa: S302 - our own file
            except (struct.error, ValueError, EOFError, TypeError) as error:
                raise StateUnusable(f"`{self._path}` is damaged: {error}") from None
            yield from records

    def _use(self, end: int) -> None:
        # A kill leaves the old or the new value.
        assert self._map is not None
        _USED.pack_into(self._map, _USED_OFFSET, end)
        self._used = end

    def _rewrite(self, room: int) -> None:
        """Replace the file by a snapshot, with space for as much again."""
        asked = [r for unique, one in self._asked.items() for r in one.records(unique)]
        data = marshal.dumps([*self._snapshot(), *asked])
        content = _LENGTH.pack(len(data)) + data
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


class UnsavedFile(NamedTuple):
    """A file whose content only the spool has."""

    key: str
    spool_path: str
    attributes: dict[str, int]


class RecoveredState:
    """What the records of a predecessor add up to.

    Attributes:
        inodes: number to the inode's last record, its lookups brought up to date.
        handles: number to (inode, writable, backing id).
        directories: number to (inode, names of the lines that were given).
        moves: directories whose names were being changed: inode to (old key, new key).
        asked: what is known of requests that may be asked again, by number.
        last_node, last_handle, last_directory: the highest numbers ever given out. None is
            given twice: the kernel asks again for the release of what was released already,
            and tar(1) takes two files of one inode number for one file.
    """

    def __init__(self) -> None:
        self.inodes: dict[int, Record] = {}
        self.handles: dict[int, tuple[int, bool, int]] = {}
        self.directories: dict[int, tuple[int, list[str]]] = {}
        self.moves: dict[int, tuple[str, str]] = {}
        self.asked: dict[int, ReplayedRequest] = {}
        self.last_inode = self.last_handle = self.last_directory = 0

    @classmethod
    def read(cls, journal: Journal) -> RecoveredState:
        """Add up a journal."""
        held = cls()
        for record in journal.read():
            held._add(record)
        return held

    def unsaved(self) -> list[UnsavedFile]:
        """What is in the spool and not in the store."""
        found = []
        for record in self.inodes.values():
            if len(record) == _FILE_FIELDS:
                detached, _remote, attributes, spool_path, dirty, key = record[_DETACHED:]
                if spool_path is not None and dirty and not detached:
                    found.append(UnsavedFile(key, spool_path, attributes))
        return found

    def _add(self, record: Record) -> None:
        kind, number, *rest = record
        if kind in _ABOUT_REQUESTS:
            self.asked.setdefault(number, ReplayedRequest()).add(record)
        elif kind == "answered":
            for unique in number:
                self.asked.pop(unique, None)
        elif kind == "last":
            self.last_inode, self.last_handle, self.last_directory = number, *rest
        elif kind == "node":
            self.inodes[number] = record
            self.last_inode = max(self.last_inode, number)
        elif kind == "held":
            known = self.inodes.get(number)
            if known is not None:
                self.inodes[number] = (*known[:_LOOKUPS], rest[0], *known[_LOOKUPS + 1 :])
        elif kind == "dropped":
            self.inodes.pop(number, None)
        else:
            self._add_opened(kind, number, rest)

    def _add_opened(self, kind: str, number: int, rest: list[Any]) -> None:
        if kind == "open":
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
        elif kind == "moving":
            self.moves[number] = (rest[0], rest[1])
        elif kind == "moved":
            self.moves.pop(number, None)


_LOOKUPS = 4  # positions in an inode's record
_DETACHED = 5
_FILE_FIELDS = 11
