"""The spool: what programs wrote, on local disk, until the store has confirmed it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from sidecar.errors import SpoolFull
from sidecar.mounter.store.interface import FileSlice, ObjectInfo
from sidecar.mounter.store.ranges import Ranges
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.spool_log import SUFFIX, Attempt, SpoolLog

MOST_RESTING = 256
"""Spool files that nobody reads or writes right now, and whose descriptors stay open."""
_STAT_BLOCK_BYTES = 512
# include/uapi/linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)


class SpoolBudget:
    """How much disk space the files of one mount's spool may occupy together."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """What can still be written."""
        return max(0, self.total_bytes - self.used_bytes)

    def check(self, more_bytes: int) -> None:
        """Raise SpoolFull if ``more_bytes`` would not fit. Nothing always does."""
        # It may be over-full: blocks are larger than what was asked for, and two files that ask
        # at once are both let in.
        if more_bytes and self.used_bytes + more_bytes > self.total_bytes:
            raise SpoolFull(
                f"the spool holds {self.used_bytes} of {self.total_bytes} bytes",
                "close files so that they are uploaded, or raise `sizes.spool_bytes`",
            )

    def change(self, bytes_: int) -> None:
        """Account for space taken (positive) or given back (negative)."""
        with self._lock:
            self.used_bytes += bytes_


class Descriptors:
    """Descriptors of spool files: open while somebody uses them, and few of those that rest.

    Safe to use from any thread.
    """

    def __init__(self, most_resting: int = MOST_RESTING) -> None:
        self._most_resting = most_resting
        self._lock = threading.Lock()
        self._users: dict[Path, list[int]] = {}  # descriptor, and how many use it
        self._resting: OrderedDict[Path, int] = OrderedDict()  # the longest first

    def of(self, path: Path) -> _Held:
        """A block with the descriptor of a file, for reading and writing. Raises OSError."""
        return _Held(self, path)

    def take(self, path: Path) -> int:
        """Somebody uses the descriptor, until :meth:`give_back`. Raises OSError."""
        with self._lock:
            used = self._users.get(path)
            if used is None:
                descriptor = self._resting.pop(path, -1)
                if descriptor < 0:
                    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                used = self._users[path] = [descriptor, 0]
            used[1] += 1
            return used[0]

    def give_back(self, path: Path) -> None:
        """One user less."""
        with self._lock:
            used = self._users[path]
            used[1] -= 1
            if not used[1]:
                del self._users[path]
                self._resting[path] = used[0]
                if len(self._resting) > self._most_resting:
                    os.close(self._resting.popitem(last=False)[1])

    def forget(self, path: Path) -> None:
        """The file is about to be deleted; nobody uses it."""
        with self._lock:
            descriptor = self._resting.pop(path, -1)
        if descriptor >= 0:
            os.close(descriptor)


class _Held:
    """Not a generator, which costs each write(2) a tenth of its time."""

    __slots__ = ("_descriptors", "_path")

    def __init__(self, descriptors: Descriptors, path: Path) -> None:
        self._descriptors = descriptors
        self._path = path

    def __enter__(self) -> int:
        return self._descriptors.take(self._path)

    def __exit__(self, *_: object) -> None:
        self._descriptors.give_back(self._path)


class SpoolFile:
    """One file's content on local disk. The caller holds the file inode's lock.

    What the store has already may leave the disk again, part by part, when room is needed.

    Attributes:
        layout: how it is cut into parts.
        state: what a process that takes it over must know besides.
        dirty: the store does not have this content yet.
        size_bytes: length.
        base: the object that it began as, or that was last made of it.
        changed: what ``base`` does not have as it is here.
        filled_bytes: so much was written from the beginning on, without a gap.
        exclusive: made with O_EXCL, and not saved yet.
        failed: the last attempt to save it failed.
        attempts: what was about to be made, and perhaps was, since it was saved last.
    """

    def __init__(
        self,
        path: Path,
        budget: SpoolBudget,
        descriptors: Descriptors,
        layout: PartLayout,
        *,
        adopt: bool = False,
    ) -> None:
        self.path = path
        self.layout = layout
        self.dirty = False
        self.base: ObjectInfo | None = None
        self.changed = Ranges()
        self.exclusive = False
        self.failed = False
        self.attempts: list[Attempt] = []
        self._budget = budget
        self._descriptors = descriptors
        self._taken_bytes = 0
        # Zeros that nobody wrote, and that the store has to be sent: they take no space here.
        self._holes = Ranges()
        self._is_gone = False
        if not adopt:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o600))
        self.size_bytes = path.stat().st_size
        self.filled_bytes = self.size_bytes
        state_path = path.with_suffix(SUFFIX)
        self.state = SpoolLog.read(state_path) if adopt else SpoolLog(state_path)
        if adopt:
            self._adopt()
        self._account()

    def _adopt(self) -> None:
        """Another process wrote it: what only its memory had is taken for changed."""
        self.base = self.state.base
        self.exclusive = self.state.exclusive
        self.attempts = list(self.state.attempts)
        self.missing.intersection_update(self.parts())  # it may have been cut since
        self.changed.add(0, self.size_bytes)
        with self._descriptor() as fd:
            for start, end in _holes_in(fd, self.size_bytes):
                self._holes.add(start, end)
        for number in self.missing:
            start, size_bytes = self.span(number)
            self.changed.remove(start, start + size_bytes)
            self._holes.remove(start, start + size_bytes)

    def _descriptor(self) -> contextlib.AbstractContextManager[int]:
        return self._descriptors.of(self.path)

    def hold(self) -> contextlib.AbstractContextManager[int]:
        """Keep it open, for what :meth:`content` gives."""
        return self._descriptor()

    def duplicate(self) -> int:
        """A descriptor of the caller's own, which may outlive the file."""
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def missing(self) -> set[int]:
        """Parts that only the store has."""
        return self.state.missing

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``; returns its length. Raises SpoolFull, OSError (a full disk).

        None of the parts that it touches is missing, nor the one that it makes longer.
        """
        if not data:
            return 0
        self._budget.check(len(data) + max(0, offset - self.size_bytes))
        self.dirty = True
        position, taken_bytes = self._write(offset, data)
        self._grow_to(offset)
        self.changed.add(offset, position)
        if self._holes:
            self._holes.remove(offset, position)
        if offset <= self.filled_bytes:
            self.filled_bytes = max(self.filled_bytes, position)
        self.size_bytes = max(self.size_bytes, position)
        self._account_for(taken_bytes)
        return len(data)

    def _grow_to(self, size_bytes: int) -> None:
        """A gap reads as zeros, which no object has there."""
        if size_bytes > self.size_bytes:
            self.changed.add(self.size_bytes, size_bytes)
            self._holes.add(self.size_bytes, size_bytes)

    def _write(self, offset: int, data: bytes | memoryview) -> tuple[int, int]:
        """Returns where it ends, and how much of the disk the file takes now."""
        view = memoryview(data)
        position = offset
        with self._descriptor() as fd:
            try:
                while view:
                    written = os.pwrite(fd, view, position)
                    view = view[written:]
                    position += written
            except OSError:
                # A full disk: what was written of it must not show when the file grows later.
                os.ftruncate(fd, self.size_bytes)
                raise
            return position, _taken_bytes(fd)

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only at the end."""
        with self._descriptor() as fd:
            return os.pread(fd, size, offset)

    def read_whole(
        self, offset: int, size: int, fetch: Callable[[int, memoryview], None]
    ) -> memoryview:
        """:meth:`read` where parts are missing: ``fetch`` fills memory from an offset on."""
        size = max(0, min(size, self.size_bytes - offset))
        data = memoryview(bytearray(size))
        for number in self.layout.covering(offset, size):
            start, length = self.span(number)
            first, last = max(start, offset), min(start + length, offset + size)
            here = data[first - offset : last - offset]
            if number in self.missing:
                fetch(first, here)
            else:
                here[:] = self.read(first, last - first)
        return data

    def content(self, offset: int, size_bytes: int) -> FileSlice:
        """A range, to be sent; good while somebody holds the file (:meth:`hold`)."""
        with self._descriptor() as fd:
            return FileSlice(fd, offset, size_bytes)

    def truncate(self, size: int) -> None:
        """Set the length; new bytes read as zero and take no space.

        Where it becomes longer, the part that its end lies in is not missing. Raises SpoolFull.
        """
        self._budget.check(max(0, size - self.size_bytes))
        with self._descriptor() as fd:
            os.ftruncate(fd, size)
        self._grow_to(size)
        if size < self.size_bytes:
            self.changed.remove(size, self.size_bytes)
            self._holes.remove(size, self.size_bytes)
            for number in self.missing.difference(self.layout.covering(0, size)):
                self.state.recall(number)  # there is no such part any more
        self.filled_bytes = min(self.filled_bytes, size)
        self.size_bytes = size
        self.dirty = True
        self._account()

    def span(self, number: int) -> tuple[int, int]:
        """Offset and length of a part, as long as the file is."""
        start = self.layout.start(number)
        return start, min(self.layout.size(number), self.size_bytes - start)

    def parts(self) -> range:
        """The numbers of its parts."""
        return self.layout.covering(0, self.size_bytes)

    def is_as_in_base(self, number: int) -> bool:
        """Whether ``base`` has a part as it is here."""
        start, size_bytes = self.span(number)
        end = start + size_bytes
        return (
            self.base is not None
            and end <= self.base.size_bytes
            and not self.changed.touches(start, end)
        )

    def begin_as(self, base: ObjectInfo) -> None:
        """Have the length of an object, and all of its parts missing."""
        with self._descriptor() as fd:
            os.ftruncate(fd, base.size_bytes)
        self.size_bytes = self.filled_bytes = base.size_bytes
        self.rebase(base)
        self.state.rebase(base)
        self.state.evict(list(self.parts()))

    def rebase(self, base: ObjectInfo | None) -> None:
        """The store has this content as ``base``."""
        if self.missing and base is not None and base != self.state.base:
            self.state.rebase(base)
        self.base = base
        self.changed.clear()
        self._holes.clear()
        self._account()

    def follow(self, base: ObjectInfo) -> None:
        """The same object has another key by now, or other metadata."""
        if base != self.base:
            self.base = base
            if self.missing:
                self.state.rebase(base)

    def evict(self, numbers: list[int]) -> bool:
        """Give up the bytes of parts that the store has; False where the disk cannot."""
        self.state.evict(numbers)
        with self._descriptor() as fd:
            for number in numbers:
                start, size_bytes = self.span(number)
                if not _punch(fd, start, size_bytes):
                    return False
        self._account()
        return True

    def recall(self, number: int, data: memoryview) -> None:
        """The bytes of a missing part are back. Raises SpoolFull, OSError."""
        self._budget.check(len(data))
        _, taken_bytes = self._write(self.layout.start(number), data)
        self.state.recall(number)
        self._account_for(taken_bytes)

    def discard(self) -> None:
        """Delete the file, and give its space back."""
        if self._is_gone:
            return
        self._is_gone = True
        self._descriptors.forget(self.path)
        self.path.unlink(missing_ok=True)
        self.state.discard()
        self._budget.change(-self._taken_bytes)
        self._taken_bytes = 0

    def _account(self) -> None:
        with self._descriptor() as fd:
            taken_bytes = _taken_bytes(fd)
        self._account_for(taken_bytes)

    def _account_for(self, taken_bytes: int) -> None:
        # A hole takes no space, but it will be sent: who makes one of a terabyte is told now, and
        # not after the hours that its zeros would take.
        taken_bytes += self._holes.size_bytes
        if taken_bytes != self._taken_bytes:
            self._budget.change(taken_bytes - self._taken_bytes)
            self._taken_bytes = taken_bytes


class Spool:
    """The directory of one mount's spool files."""

    def __init__(self, directory: Path, total_bytes: int, layout: PartLayout) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.budget = SpoolBudget(total_bytes)
        self.layout = layout
        self._directory = directory
        self._descriptors = Descriptors()
        self._lock = threading.Lock()
        self._next = 0

    def adopt(self, path: str) -> SpoolFile:
        """The file that a predecessor left. Raises OSError if it is gone."""
        return SpoolFile(Path(path), self.budget, self._descriptors, self.layout, adopt=True)

    def leftovers(self, kept: Collection[Path] = ()) -> list[SpoolLog]:
        """What processes before this one began in the store, but for the spool files ``kept``."""
        names = {path.stem for path in kept}
        return [state for state in SpoolLog.all_in(self._directory) if state.path.stem not in names]

    def clear(self) -> None:
        """Delete files of runs before this one that nothing leads to."""
        for path in self._directory.glob("*.data"):
            path.unlink()

    def create(self) -> SpoolFile:
        """A new, empty spool file."""
        with self._lock:
            while True:
                path = self._directory / f"{self._next:08d}.data"
                self._next += 1
                if not path.exists() and not path.with_suffix(SUFFIX).exists():
                    return SpoolFile(path, self.budget, self._descriptors, self.layout)


def _holes_in(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of a file that take no space; lseek(2) with SEEK_HOLE and SEEK_DATA."""
    position = 0
    while position < size_bytes:
        start = os.lseek(fd, position, os.SEEK_HOLE)
        if start >= size_bytes:
            return
        try:
            position = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data behind it
                raise
            position = size_bytes
        yield start, position


def _taken_bytes(fd: int) -> int:
    """Blocks and not the length: a copy-on-write file system or a full disk is seen as it is."""
    return os.fstat(fd).st_blocks * _STAT_BLOCK_BYTES


def _punch(fd: int, offset: int, size_bytes: int) -> bool:
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE; False where the file system has no such thing."""
    how = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc.fallocate(fd, how, ctypes.c_int64(offset), ctypes.c_int64(size_bytes)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code))
