"""Memory for content on its way from the store to the kernel: one budget, reused buffers."""

from __future__ import annotations

import threading
from typing import Protocol

_KEEP = 8


class Holder(Protocol):
    """Somebody who keeps buffers for a reader that may come."""

    def give_up_idle(self) -> bool:
        """Give back what was not used for a while; False where that is nothing.

        Must not wait for a lock: whoever asks may hold one of its own.
        """


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
        self._holders: dict[Holder, None] = {}  # the oldest first

    # --- buffers --------------------------------------------------------------------------

    def take(self, size: int) -> bytearray | None:
        """A buffer of exactly ``size`` bytes with arbitrary content; None beyond the budget."""
        with self._lock:
            if self.lent_bytes + size > self.budget_bytes:
                return None
            self.lent_bytes += size
            idle = self._idle.get(size)
            if idle:
                self._idle_bytes -= size
                buffer = idle.pop()
                if not idle:
                    del self._idle[size]
                return buffer
            self._make_room()
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Return a buffer that nobody reads any more."""
        size = len(buffer)
        with self._lock:
            self.lent_bytes -= size
            if self.lent_bytes + self._idle_bytes + size > self.budget_bytes:
                return
            idle = self._idle.setdefault(size, [])
            if len(idle) < _KEEP:
                idle.append(buffer)
                self._idle_bytes += size

    def _make_room(self) -> None:
        # Idle buffers of other sizes must not push the process over its budget.
        while self._idle and self.lent_bytes + self._idle_bytes > self.budget_bytes:
            size, idle = next(iter(self._idle.items()))
            idle.pop()
            self._idle_bytes -= size
            if not idle:
                del self._idle[size]

    # --- who holds them -------------------------------------------------------------------

    @property
    def share_bytes(self) -> int:
        """What each holder may have, so that many of them get something each."""
        return self.budget_bytes // max(1, len(self._holders))

    def register(self, holder: Holder) -> None:
        """Count somebody who holds buffers."""
        with self._lock:
            self._holders[holder] = None

    def unregister(self, holder: Holder) -> None:
        """Forget somebody who holds none any more. Unknown ones are ignored."""
        with self._lock:
            self._holders.pop(holder, None)

    def reclaim(self, asker: Holder) -> bool:
        """Make others give up what they do not use; False where there is nothing to get."""
        with self._lock:
            holders = list(self._holders)
        return any(holder.give_up_idle() for holder in holders if holder is not asker)
