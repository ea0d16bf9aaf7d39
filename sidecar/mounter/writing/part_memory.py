"""Memory for parts of new files on their way to the store, so that they do not reach a disk.

The memory is a directory that process 1 makes (:func:`memory_directory`) and gives to each worker
of a bucket. So a successor has all that a killed worker had in it. A spool file has one file in the
directory, in which a part is at the same place as in the spool file. Reasons: decision 68.
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
        directory: its descriptor; -1: no memory.
        total_bytes: how much of it may be used; 0: nothing.

    Attributes:
        total_bytes: how much of it may be used now.
        used_bytes: how much of it parts take.
    """

    def __init__(self, directory: int = -1, total_bytes: int = 0) -> None:
        self._directory = directory
        self.total_bytes = self._most_bytes = total_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()
        self._files: set[str] = set()  # those of existing spool files
        self._disk_done_s = 0.0

    # --- room ---------------------------------------------------------------------------------

    def shrink(self, part: float) -> None:
        """From now on use only this part of the total (1: all). What is in use stays."""
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
        """Account for a part that is there already, even if there is no room."""
        with self._lock:
            self.used_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Account for a part that is no longer needed."""
        with self._lock:
            self.used_bytes -= size_bytes

    @property
    def free_bytes(self) -> int:
        """How much can still be reserved."""
        return max(0, self.total_bytes - self.used_bytes)

    @property
    def beats_a_disk(self) -> bool:
        """Whether lately more has passed through this memory than a disk could have taken.

        Then sending makes room faster than a disk would, so a writer without room waits.
        """
        return time.monotonic() < self._disk_done_s

    # --- files --------------------------------------------------------------------------------

    def create(self, name: str) -> None:
        """Make an empty file of this name. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o600, dir_fd=self._directory))
        with self._lock:
            self._files.add(name)

    def adopt(self, name: str) -> bool:
        """Go on with a predecessor's file; False if there is none."""
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
        """Delete a predecessor's files that nobody has adopted."""
        if self._directory < 0:
            return
        for name in os.listdir(self._directory):
            if name not in self._files:
                os.unlink(name, dir_fd=self._directory)
