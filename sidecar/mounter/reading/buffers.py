"""Memory for content between the store and the kernel: one budget, and buffers used again."""

from __future__ import annotations

import ctypes
import threading
from typing import Protocol

_libc = ctypes.CDLL(None)
_MOST_IDLE = 8
"""How many unused buffers of one size are kept."""


class Holder(Protocol):
    """Keeps buffers that a read may need later."""

    def give_up_idle(self) -> bool:
        """Give back the buffers that were not read for a while. False if there are none.

        Must not wait for a lock: the caller may hold one that another holder waits for.
        """


class BufferPool:
    """Buffers within a budget. Safe to use from any thread.

    A new buffer of 8 MiB costs 2,048 page faults and a memset; a used one costs nothing. So
    buffers that are given back are kept, by size, and lent again, until :meth:`drop_unused`.

    Args:
        budget_bytes: the most that may be lent at one time.

    Attributes:
        budget_bytes: the most that may be lent now.
        lent_bytes: how much is lent now.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.lent_bytes = 0
        self._most_bytes = budget_bytes
        self._idle: dict[int, list[bytearray]] = {}
        self._idle_bytes = 0
        # By size: how many have not been used since the last drop_unused().
        self._unused: dict[int, int] = {}
        self._lock = threading.Lock()
        self._holders: dict[Holder, None] = {}  # the oldest first

    def shrink(self, part: float) -> None:
        """From now on lend only this part of the budget (1: all of it).

        Holders give up what they do not read now. Lent buffers beyond it come back after they
        have been read.
        """
        with self._lock:
            self.budget_bytes = int(self._most_bytes * part)
            self._make_room()
            holders = list(self._holders) if self.lent_bytes > self.budget_bytes else []
        for holder in holders:
            holder.give_up_idle()
        if part < 1:
            _libc.malloc_trim(0)  # glibc keeps freed memory

    def drop_unused(self) -> None:
        """Free the buffers that nobody has used since the previous call."""
        with self._lock:
            for size, unused in self._unused.items():
                for _ in range(min(unused, len(self._idle.get(size, ())))):
                    self._drop_one(size)
            self._unused = {size: len(idle) for size, idle in self._idle.items()}

    # --- buffers --------------------------------------------------------------------------

    def take(self, size: int) -> bytearray | None:
        """A buffer of exactly ``size`` bytes, its content undefined. None beyond the budget."""
        with self._lock:
            if self.lent_bytes + size > self.budget_bytes:
                return None
            self.lent_bytes += size
            idle = self._idle.get(size)
            if idle:
                self._idle_bytes -= size
                buffer = idle.pop()
                self._unused[size] = min(self._unused.get(size, 0), len(idle))
                if not idle:
                    del self._idle[size]
                return buffer
            self._make_room()
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Return a buffer."""
        size = len(buffer)
        with self._lock:
            self.lent_bytes -= size
            if self.lent_bytes + self._idle_bytes + size > self.budget_bytes:
                return
            idle = self._idle.setdefault(size, [])
            if len(idle) < _MOST_IDLE:
                idle.append(buffer)
                self._idle_bytes += size

    def _make_room(self) -> None:
        # Idle buffers of other sizes count in the budget, too.
        while self._idle and self.lent_bytes + self._idle_bytes > self.budget_bytes:
            self._drop_one(next(iter(self._idle)))

    def _drop_one(self, size: int) -> None:
        idle = self._idle[size]
        idle.pop()
        self._idle_bytes -= size
        if not idle:
            del self._idle[size]

    # --- holders --------------------------------------------------------------------------

    @property
    def share_bytes(self) -> int:
        """An equal share of the budget for each holder."""
        return self.budget_bytes // max(1, len(self._holders))

    @property
    def is_short(self) -> bool:
        """Whether the rest of the budget is reserved for holders with less than their share."""
        return self.lent_bytes > self.budget_bytes * 3 // 4

    def register(self, holder: Holder) -> None:
        """Add a holder to those that share the budget. Adding it twice changes nothing."""
        with self._lock:
            self._holders[holder] = None

    def unregister(self, holder: Holder) -> None:
        """Remove a holder. One that is not registered is ignored."""
        with self._lock:
            self._holders.pop(holder, None)

    def reclaim(self, asker: Holder) -> bool:
        """Make one holder other than ``asker`` give up idle buffers. False if none has any."""
        with self._lock:
            holders = list(self._holders)
        return any(holder.give_up_idle() for holder in holders if holder is not asker)
