"""Random reads of one object: how much around each of them is fetched too.

Who reads an object in random order mostly reads all of it: records that are shuffled, an
array that is mapped. Then a request for a few KiB costs as much time as one for a MiB, and
what it brings beyond the question answers the next ones, from the kernel's page cache. Who
reads little of an object must not pay for the rest. So each read brings a fixed part of what
was asked for so far: the first ones bring what they ask for, and the object is never fetched
more than once on account of a few reads. Where the page cache does not keep what it was
given, or cannot, nothing is widened.

Once the reads show that it pays, the rest of the object is brought behind their backs too: by
then most of the time goes into waiting for one block after the other.
"""

from __future__ import annotations

import threading

_PART = 16
"""A read brings at most this part of the bytes that were asked for before."""
_PART_BEHIND = 32
"""All that is brought, with what comes behind the readers' backs, is at most this many times
what was asked for."""
_FEW = 1
"""While more reads than that are under way they keep connections and processors busy."""
MOST_BYTES = 2 * 1024 * 1024
_CHUNK_BYTES = 128 * 1024
_CHUNKS = MOST_BYTES // _CHUNK_BYTES
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


class ReadAround:
    """The random reads of one object. Used with the object's lock held.

    Args:
        size_bytes: of the object.
        blocks: which blocks of MOST_BYTES may be brought behind the readers' backs; other
            processes have the others.
    """

    def __init__(self, share: PageCacheShare, size_bytes: int, blocks: range) -> None:
        self._share = share
        self._size_bytes = size_bytes
        self._blocks = blocks
        self._behind: int | None = None  # the block of which something is brought now
        self._reserved = False
        self._asked_bytes = 0
        self._brought_bytes = 0
        self._under_way: set[int] = set()
        self._given = bytearray(-(-size_bytes // _CHUNK_BYTES))
        self._lost = 0

    def begin(self, offset: int, end: int) -> tuple[int, int]:
        """The range to fetch for a read of ``[offset, end)``; :meth:`end` must follow."""
        self._asked_bytes += end - offset
        first, last = self._around(offset, end)
        self._brought_bytes += last - first
        return first, last

    def _around(self, offset: int, end: int) -> tuple[int, int]:
        part_bytes = min(MOST_BYTES, self._asked_bytes // _PART)
        if part_bytes <= end - offset:
            return offset, end
        block_bytes = 1 << (part_bytes.bit_length() - 1)  # so that blocks do not overlap
        first = offset - offset % block_bytes
        is_coming = first in self._under_way or first // MOST_BYTES == self._behind
        if end > first + block_bytes or is_coming:
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

    def behind(self) -> tuple[int, int] | None:
        """The next range to bring while nobody waits for it; None where none pays at present.

        The one before is not being brought any more then. What is not :meth:`given` comes again.
        """
        self._behind = None
        credit_bytes = self._asked_bytes * _PART_BEHIND - self._brought_bytes
        pays = self._asked_bytes >= MOST_BYTES * _PART and credit_bytes >= MOST_BYTES
        if not pays or len(self._under_way) > _FEW:
            return None
        while self._blocks and self._may_widen():
            block = self._blocks[0]
            begin, end = block * _CHUNKS, min((block + 1) * _CHUNKS, len(self._given))
            first = self._given.find(0, begin, end)
            if first < 0 or block * MOST_BYTES in self._under_way:
                self._blocks = self._blocks[1:]
                continue
            last = self._given.find(1, first, end)
            span = (
                first * _CHUNK_BYTES,
                min((last if last >= 0 else end) * _CHUNK_BYTES, self._size_bytes),
            )
            self._behind = block
            self._brought_bytes += span[1] - span[0]
            return span
        return None

    def given(self, first: int, last: int) -> None:
        """The kernel has the range."""
        low = -(-first // _CHUNK_BYTES)
        high = len(self._given) if last == self._size_bytes else last // _CHUNK_BYTES
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
