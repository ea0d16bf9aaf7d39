"""Random reads of one object: how much around each of them is fetched too.

Who reads an object in random order mostly reads all of it: records that are shuffled, an
array that is mapped. Then a request for a few KiB costs as much time as one for a MiB, and
what it brings beyond the question answers the next ones, from the kernel's page cache. Who
reads little of an object must not pay for the rest. So each read brings a fixed part of what
was asked for so far: the first ones bring what they ask for, and the object is never fetched
more than once on account of a few reads. Where the page cache does not keep what it was
given, or cannot, nothing is widened.
"""

from __future__ import annotations

import threading

_PART = 16
"""A read brings at most this part of the bytes that were asked for before."""
MOST_BYTES = 2 * 1024 * 1024
_CHUNK_BYTES = 128 * 1024
_MOST_LOST = 32


class PageCacheShare:
    """What one process may give to the kernel's page cache unasked.

    Args:
        budget_bytes: the sizes of the objects that are widened at the same time, in all.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._left_bytes = budget_bytes
        self._lock = threading.Lock()

    def reserve(self, size_bytes: int) -> bool:
        """Room for an object; False where there is none."""
        with self._lock:
            if size_bytes > self._left_bytes:
                return False
            self._left_bytes -= size_bytes
            return True

    def give_back(self, size_bytes: int) -> None:
        """An object is not read any more."""
        with self._lock:
            self._left_bytes += size_bytes


class Widening:
    """The random reads of one object. Used with the object's lock held.

    Args:
        size_bytes: of the object.
    """

    def __init__(self, share: PageCacheShare, size_bytes: int) -> None:
        self._share = share
        self._size_bytes = size_bytes
        self._reserved = False
        self._asked_bytes = 0
        self._under_way: set[int] = set()
        self._given = bytearray(-(-size_bytes // _CHUNK_BYTES))
        self._lost = 0

    def begin(self, offset: int, end: int) -> tuple[int, int]:
        """The range to fetch for a read of ``[offset, end)``; :meth:`end` must follow."""
        self._asked_bytes += end - offset
        part_bytes = min(MOST_BYTES, self._asked_bytes // _PART)
        if part_bytes <= end - offset:
            return offset, end
        block_bytes = 1 << (part_bytes.bit_length() - 1)  # so that blocks do not overlap
        first = offset - offset % block_bytes
        if end > first + block_bytes or first in self._under_way:
            return offset, end
        if self._given[offset // _CHUNK_BYTES]:
            self._lost += 1  # the kernel had it, and dropped it
        if not self._may_widen():
            return offset, end
        self._under_way.add(first)
        return first, min(first + block_bytes, self._size_bytes)

    def end(self, first: int) -> None:
        """The range that begins there is not being fetched any more."""
        self._under_way.discard(first)

    def given(self, first: int, last: int) -> None:
        """The kernel has the range."""
        low, high = -(-first // _CHUNK_BYTES), last // _CHUNK_BYTES
        self._given[low:high] = b"\1" * (high - low)

    def rest(self) -> None:
        """The object is not read for now: others may have its room."""
        if self._reserved:
            self._share.give_back(self._size_bytes)
        self._reserved = False

    def _may_widen(self) -> bool:
        if self._lost > _MOST_LOST:
            return False
        if not self._reserved:
            self._reserved = self._share.reserve(self._size_bytes)
        return self._reserved
