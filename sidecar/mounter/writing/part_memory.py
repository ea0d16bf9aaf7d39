"""Memory for parts of new files that are on their way to the store, so that no disk sees them.

It is a directory that process 1 makes (:func:`memory_directory`) and gives to each worker of a
bucket: what a worker that was killed had in it, its successor has. A spool file has one file in
it, in which a part is where it is in the spool file. Decision 68 is why.
"""

from __future__ import annotations

import os
import threading
import time

_DISK_RATE = 125_000_000
"""Bytes a second of a node's usual root disk."""


class PartMemory:
    """The memory of one mount. Safe to use from any thread.

    Args:
        directory: a descriptor of it; -1 if there is no memory.
        total_bytes: how much of it may be used; 0 for none.

    Attributes:
        total_bytes: how much of it may be used at present.
        used_bytes: what parts take of it.
    """

    def __init__(self, directory: int = -1, total_bytes: int = 0) -> None:
        self._directory = directory
        self.total_bytes = self._most_bytes = total_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()
        self._files: set[str] = set()  # those that a spool file has
        self._disk_done_s = 0.0

    # --- room ---------------------------------------------------------------------------------

    def shrink(self, part: float) -> None:
        """From now on use this part of it only, 1 for all. What is there already stays."""
        self.total_bytes = int(self._most_bytes * part)

    def reserve(self, size_bytes: int) -> bool:
        """Account for a part; False if there is no room."""
        with self._lock:
            if self.used_bytes + size_bytes > self.total_bytes:
                return False
            self.used_bytes += size_bytes
            now_s = time.monotonic()
            self._disk_done_s = min(
                max(now_s, self._disk_done_s) + size_bytes / _DISK_RATE,
                now_s + self.total_bytes / _DISK_RATE,
            )
            return True

    def take(self, size_bytes: int) -> None:
        """Account for a part that is there already, whether there is room or not."""
        with self._lock:
            self.used_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """It is needed no longer."""
        with self._lock:
            self.used_bytes -= size_bytes

    @property
    def free_bytes(self) -> int:
        """What can still be reserved."""
        return max(0, self.total_bytes - self.used_bytes)

    @property
    def beats_a_disk(self) -> bool:
        """Whether a disk would not have yet what went into this memory lately.

        While that is so, sending makes room faster than a disk, and who has none waits for it.
        """
        return time.monotonic() < self._disk_done_s

    # --- files --------------------------------------------------------------------------------

    def create(self, name: str) -> None:
        """An empty file of this name. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o600, dir_fd=self._directory))
        with self._lock:
            self._files.add(name)

    def adopt(self, name: str) -> bool:
        """Go on with the file that a predecessor left; False if there is none."""
        if self._directory < 0 or name not in os.listdir(self._directory):
            return False
        with self._lock:
            self._files.add(name)
        return True

    def open(self, name: str) -> int:
        """A descriptor of a file, for reading and writing. Raises OSError."""
        return os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._directory)

    def remove(self, name: str) -> None:
        """Delete a file, which nobody needs any more."""
        with self._lock:
            self._files.discard(name)
        os.unlink(name, dir_fd=self._directory)

    def sweep(self) -> None:
        """Delete what a predecessor left and nobody goes on with."""
        if self._directory < 0:
            return
        for name in os.listdir(self._directory):
            if name not in self._files:
                os.unlink(name, dir_fd=self._directory)
