"""The spool: what programs wrote, on local disk, until the store has confirmed it."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

from sidecar.errors import SpoolFull
from sidecar.mounter.filesystem.parts import Layout
from sidecar.mounter.filesystem.spool_state import SUFFIX, SpoolState
from sidecar.mounter.store.base import FileSlice, ObjectInfo

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
        """Raise SpoolFull if ``more_bytes`` would not fit."""
        if self.used_bytes + more_bytes > self.total_bytes:
            raise SpoolFull(
                f"the spool holds {self.used_bytes} of {self.total_bytes} bytes",
                "close files so that they are uploaded, or raise `sizes.spool_bytes`",
            )

    def change(self, bytes_: int) -> None:
        """Account for space taken (positive) or given back (negative)."""
        with self._lock:
            self.used_bytes += bytes_


class SpoolFile:
    """One file's content on local disk. The caller holds the file node's lock.

    What the store has already may leave the disk again, part by part, when room is needed.

    Attributes:
        layout: how it is cut into parts.
        state: what a process that takes it over must know besides.
        dirty: the store does not have this content yet.
        size_bytes: length.
        base: the object that it began as, or that was last made of it.
        changed: parts that ``base`` does not have as they are here.
        is_longer_only: all that changed since ``base`` is behind its end.
        filled_bytes: so much was written from the beginning on, without a gap.
        adopted: another process wrote it.
        exclusive: made with O_EXCL, and not saved yet.
        failed: the last attempt to save it failed.
        attempt: size and metadata of what that attempt was about to make, and perhaps made.
    """

    def __init__(
        self, path: Path, budget: SpoolBudget, layout: Layout, *, adopt: bool = False
    ) -> None:
        self.path = path
        self.layout = layout
        self.dirty = False
        self.base: ObjectInfo | None = None
        self.changed: set[int] = set()
        self.is_longer_only = False
        self.exclusive = False
        self.failed = False
        self.attempt: tuple[int, Mapping[str, str]] | None = None
        self._budget = budget
        self._disk_bytes = 0
        how = 0 if adopt else os.O_CREAT | os.O_EXCL
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | how, 0o600)
        self.size_bytes = os.fstat(self.fd).st_size
        self.filled_bytes = self.size_bytes
        self.adopted = adopt
        state_path = path.with_suffix(SUFFIX)
        self.state = SpoolState.read(state_path) if adopt else SpoolState(state_path)
        if adopt:
            self.base = self.state.base
            self.exclusive = self.state.exclusive
            self.changed = set(layout.covering(0, self.size_bytes)) - self.state.missing
        self._account()

    @property
    def missing(self) -> set[int]:
        """Parts that only the store has."""
        return self.state.missing

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``; returns its length. Raises SpoolFull, OSError (a full disk).

        None of the parts that it touches is missing.
        """
        if not data:
            return 0
        self._budget.check(len(data))
        self.dirty = True
        position = self._write(offset, data)
        self._change_from(min(offset, self.size_bytes))
        if offset > self.size_bytes:  # the gap reads as zeros, which the object does not have
            self.changed.update(self.layout.covering(self.size_bytes, offset - self.size_bytes))
        self.changed.update(self.layout.covering(offset, len(data)))
        if offset <= self.filled_bytes:
            self.filled_bytes = max(self.filled_bytes, position)
        self.size_bytes = max(self.size_bytes, position)
        self._account()
        return len(data)

    def _write(self, offset: int, data: bytes | memoryview) -> int:
        """Returns where it ends."""
        view = memoryview(data)
        position = offset
        try:
            while view:
                written = os.pwrite(self.fd, view, position)
                view = view[written:]
                position += written
        except OSError:
            # A full disk: what was written of it must not show when the file grows later.
            os.ftruncate(self.fd, self.size_bytes)
            raise
        return position

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only at the end."""
        return os.pread(self.fd, size, offset)

    def content(self, offset: int, size_bytes: int) -> FileSlice:
        """A range, to be sent."""
        return FileSlice(self.fd, offset, size_bytes)

    def truncate(self, size: int) -> None:
        """Set the length; new bytes read as zero and take no space.

        The part that the shorter of the two lengths lies in is not missing.
        """
        shorter = min(size, self.size_bytes)
        self._change_from(shorter)
        os.ftruncate(self.fd, size)
        last = self.layout.number(max(size, self.size_bytes))
        touched = range(self.layout.number(shorter), last + 1)
        count = len(self.layout.covering(0, size))
        for number in self.missing.intersection(touched):
            self.state.recall(number)  # there is no such part any more
        self.changed.update(touched)
        self.changed = {number for number in self.changed if number <= count}
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

    def begin_as(self, base: ObjectInfo) -> None:
        """Have the length of an object, and all of its parts missing."""
        os.ftruncate(self.fd, base.size_bytes)
        self.size_bytes = self.filled_bytes = base.size_bytes
        self.rebase(base)
        self.state.rebase(base)
        self.state.evict(list(self.parts()))
        self._account()

    def rebase(self, base: ObjectInfo | None) -> None:
        """The store has this content as ``base``."""
        if self.missing and base is not None and base != self.state.base:
            self.state.rebase(base)
        self.base = base
        self.changed.clear()
        self.is_longer_only = True

    def follow(self, base: ObjectInfo) -> None:
        """The same object has another key by now, or other metadata."""
        if base != self.base:
            self.base = base
            if self.missing:
                self.state.rebase(base)

    def evict(self, numbers: list[int]) -> bool:
        """Give up the bytes of parts that the store has; False where the disk cannot."""
        self.state.evict(numbers)
        for number in numbers:
            start, size_bytes = self.span(number)
            if not _punch(self.fd, start, size_bytes):
                return False
        self._account()
        return True

    def recall(self, number: int, data: memoryview) -> None:
        """The bytes of a missing part are back. Raises SpoolFull, OSError."""
        self._budget.check(len(data))
        self._write(self.layout.start(number), data)
        self.state.recall(number)
        self._account()

    def discard(self) -> None:
        """Close and delete the file, and give its space back."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self.path.unlink(missing_ok=True)
        self.state.discard()
        self._budget.change(-self._disk_bytes)
        self._disk_bytes = 0

    def _change_from(self, offset: int) -> None:
        if self.base is None or offset < self.base.size_bytes:
            self.is_longer_only = False

    def _account(self) -> None:
        # Blocks and not the length: a hole takes no space, and a copy-on-write file
        # system or a full disk is seen as it is.
        disk_bytes = os.fstat(self.fd).st_blocks * _STAT_BLOCK_BYTES
        if disk_bytes != self._disk_bytes:
            self._budget.change(disk_bytes - self._disk_bytes)
            self._disk_bytes = disk_bytes


class Spool:
    """The directory of one mount's spool files."""

    def __init__(self, directory: Path, total_bytes: int, layout: Layout) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.budget = SpoolBudget(total_bytes)
        self.layout = layout
        self._directory = directory
        self._lock = threading.Lock()
        self._next = 0

    def adopt(self, path: str) -> SpoolFile:
        """The file that a predecessor left. Raises OSError if it is gone."""
        return SpoolFile(Path(path), self.budget, self.layout, adopt=True)

    def leftovers(self, kept: Collection[Path] = ()) -> list[SpoolState]:
        """What processes before this one began in the store, but for the spool files ``kept``."""
        names = {path.stem for path in kept}
        return [
            state for state in SpoolState.all_in(self._directory) if state.path.stem not in names
        ]

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
                    return SpoolFile(path, self.budget, self.layout)


def _punch(fd: int, offset: int, size_bytes: int) -> bool:
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE; False where the file system has no such thing."""
    how = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc.fallocate(fd, how, ctypes.c_int64(offset), ctypes.c_int64(size_bytes)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code))
