"""Disk space for the spool files of one mount."""

from __future__ import annotations

import threading

from sidecar.errors import SpoolFull


class SpoolBudget:
    """How much disk space the files of one mount's spool may occupy together."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """How much can still be written."""
        return max(0, self.total_bytes - self.used_bytes)

    def check(self, more_bytes: int) -> None:
        """Raise SpoolFull if ``more_bytes`` would not fit. 0 always fits."""
        # It may be over-full: blocks are larger than what was written, and two files that ask
        # at once both get room.
        if more_bytes and self.used_bytes + more_bytes > self.total_bytes:
            raise SpoolFull(
                f"the spool holds {self.used_bytes} of {self.total_bytes} bytes",
                "close files so that they are uploaded, or raise its option `spoolBytes`",
            )

    def charge(self, bytes_: int) -> None:
        """Account for space taken (positive) or given back (negative)."""
        with self._lock:
            self.used_bytes += bytes_
