"""Memory for content on its way from the store to the kernel: one budget, reused buffers."""

from __future__ import annotations

import threading

_KEEP = 8


class BufferPool:
    """Buffers within a budget.

    A fresh 8 MiB buffer costs the kernel 2,048 page faults and a memset; taking it from a
    used one costs nothing, so released buffers are kept, by size, and lent again.

    Args:
        budget_bytes: what may be lent at one time.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.lent_bytes = 0
        self._idle: dict[int, list[bytearray]] = {}
        self._idle_bytes = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bytearray | None:
        """A buffer of exactly ``size`` bytes with arbitrary content; None beyond the budget."""
        with self._lock:
            if self.lent_bytes + size > self.budget_bytes:
                return None
            self.lent_bytes += size
            idle = self._idle.get(size)
            if idle:
                self._idle_bytes -= size
                return idle.pop()
            self._make_room()
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Return a buffer that nobody reads any more."""
        size = len(buffer)
        with self._lock:
            self.lent_bytes -= size
            idle = self._idle.setdefault(size, [])
            if len(idle) < _KEEP and self.lent_bytes + self._idle_bytes + size <= self.budget_bytes:
                idle.append(buffer)
                self._idle_bytes += size

    def _make_room(self) -> None:
        # Idle buffers of other sizes must not push the process over its budget.
        for other, idle in self._idle.items():
            while idle and self.lent_bytes + self._idle_bytes > self.budget_bytes:
                idle.pop()
                self._idle_bytes -= other
