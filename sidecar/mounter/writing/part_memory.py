"""Memory for parts of new files that are on their way to the store, so that no disk sees them.

It is one file without a name, which process 1 makes and gives to each worker of a bucket: what a
worker that was killed had in it, its successor has. A spool file has a region of it, as long as
any file may be, in which a part is where it is in the file. Decision 68 is why.
"""

from __future__ import annotations

import os
import threading
import time

from sidecar.mounter.writing.file_space import next_data, punch

REGION_BYTES = 1 << 47
_REGIONS = (1 << 16) - 1
"""As many of this size as an offset can tell apart."""
_DISK_RATE = 125_000_000
"""Bytes a second of a node's usual root disk."""


class PartMemory:
    """The memory of one mount. Safe to use from any thread.

    Args:
        descriptor: of the file; any if there is no memory.
        total_bytes: how much of it may be used; 0 for none.

    Attributes:
        total_bytes: how much of it may be used at present.
        used_bytes: what parts take of it.
    """

    def __init__(self, descriptor: int = -1, total_bytes: int = 0) -> None:
        self.descriptor = descriptor
        self.total_bytes = self._most_bytes = total_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()
        self._regions: set[int] = set()  # numbers of those that a spool file has
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

    # --- regions ------------------------------------------------------------------------------

    def claim(self, number: int) -> int | None:
        """The offset of the region for the spool file ``number``; None if another one has it."""
        region = number % _REGIONS
        with self._lock:
            if region in self._regions:
                return None
            self._regions.add(region)
        return region * REGION_BYTES

    def give_back(self, start: int) -> None:
        """Empty a region, which nobody uses any more."""
        if self.descriptor >= 0:
            punch(self.descriptor, start, REGION_BYTES)
        with self._lock:
            self._regions.discard(start // REGION_BYTES)

    def sweep(self) -> None:
        """Empty the regions that no spool file has: nobody goes on with what is in them."""
        if self.descriptor < 0:
            return
        end = os.fstat(self.descriptor).st_size
        position = next_data(self.descriptor, 0, end)
        while position < end:
            region = position // REGION_BYTES
            if region not in self._regions:
                punch(self.descriptor, region * REGION_BYTES, REGION_BYTES)
            position = next_data(self.descriptor, (region + 1) * REGION_BYTES, end)

    # --- bytes --------------------------------------------------------------------------------

    def empty(self, offset: int, size_bytes: int) -> None:
        """Give pages back; the range reads as zeros."""
        if size_bytes > 0:
            punch(self.descriptor, offset, size_bytes)

    def has(self, offset: int) -> bool:
        """Whether something was written at ``offset``."""
        if self.descriptor < 0:
            return False
        return next_data(self.descriptor, offset, offset + 1) == offset
