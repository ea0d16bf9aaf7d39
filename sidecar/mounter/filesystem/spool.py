"""The spool: what programs wrote, on local disk, until the store has confirmed it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from sidecar.errors import SpoolFull

_STAT_BLOCK_BYTES = 512
_COPY_BYTES = 1024 * 1024


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

    Attributes:
        dirty: the store does not have this content yet.
        size_bytes: length.
    """

    def __init__(self, path: Path, budget: SpoolBudget, *, adopt: bool = False) -> None:
        self.path = path
        self.dirty = False
        self._budget = budget
        self._disk_bytes = 0
        how = 0 if adopt else os.O_CREAT | os.O_EXCL
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | how, 0o600)
        self.size_bytes = os.fstat(self.fd).st_size
        self._account()

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``; returns its length. Raises SpoolFull, OSError (a full disk)."""
        if not data:
            return 0
        self._budget.check(len(data))
        self.dirty = True
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
        self.size_bytes = max(self.size_bytes, position)
        self._account()
        return len(data)

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only at the end."""
        return os.pread(self.fd, size, offset)

    def truncate(self, size: int) -> None:
        """Set the length; new bytes read as zero and take no space."""
        os.ftruncate(self.fd, size)
        self.size_bytes = size
        self.dirty = True
        self._account()

    def discard(self) -> None:
        """Close and delete the file, and give its space back."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self.path.unlink(missing_ok=True)
        self._budget.change(-self._disk_bytes)
        self._disk_bytes = 0

    def _account(self) -> None:
        # Blocks and not the length: a hole takes no space, and a copy-on-write file
        # system or a full disk is seen as it is.
        disk_bytes = os.fstat(self.fd).st_blocks * _STAT_BLOCK_BYTES
        if disk_bytes != self._disk_bytes:
            self._budget.change(disk_bytes - self._disk_bytes)
            self._disk_bytes = disk_bytes


class Spool:
    """The directory of one mount's spool files."""

    def __init__(self, directory: Path, total_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.budget = SpoolBudget(total_bytes)
        self._directory = directory
        self._lock = threading.Lock()
        self._next = 0

    def adopt(self, path: str) -> SpoolFile:
        """The file that a predecessor left. Raises OSError if it is gone."""
        return SpoolFile(Path(path), self.budget, adopt=True)

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
                if not path.exists():
                    return SpoolFile(path, self.budget)
