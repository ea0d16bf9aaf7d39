"""Random reads of one object: how much around each of them is fetched, too, and what next.

A program that reads an object in random order mostly reads all of it: shuffled records, a
mapped array. A request for a few KiB takes as long as one for a MiB, and its additional bytes
answer later reads from the kernel's page cache. But a program that reads little of an object must
not pay for the rest. So a read may fetch a fixed fraction of what was asked for so far: the first
reads fetch only what they ask for, and a few reads never fetch the whole object. If the page cache
has no room, or drops what it is given, reads fetch only what they ask for.

Once the reads show that it pays, the rest of the object is read ahead in the background: by
then most of the time is spent waiting for one block after the other.
"""

from __future__ import annotations

import threading

from sidecar.units import KIB, MIB

MOST_BYTES = 2 * MIB
"""The most that a read fetches around it. Background readahead goes by blocks of this size."""
_READ_DIVISOR = 16
"""A read fetches at most this fraction of the bytes that reads asked for so far."""
_BACKGROUND_FACTOR = 32
"""All fetches together, background included, bring at most 32 times what reads asked for."""
_BACKGROUND_ASKED_BYTES = MOST_BYTES * _READ_DIVISOR
"""Background readahead starts at this many bytes: reads fetch MOST_BYTES by then."""
_BACKGROUND_READS = 1
"""No background readahead while more reads than this are in flight: they use the connections and
processors."""
_CHUNK_BYTES = 128 * KIB
"""The unit in which the kernel's pages are remembered."""
_CHUNKS = MOST_BYTES // _CHUNK_BYTES
_DROPPED_READS = 32
"""After more reads than this of chunks that the kernel had and dropped, it gets no more."""


class PageCacheShare:
    """What one process may have in the kernel's page cache without being asked for it.

    Safe to use from any thread.

    Args:
        budget_bytes: for the sizes of all objects that are read around at the same time.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._left_bytes = budget_bytes
        self._lock = threading.Lock()

    def reserve(self, size_bytes: int) -> bool:
        """Take room for an object. False if there is none."""
        with self._lock:
            if size_bytes > self._left_bytes:
                return False
            self._left_bytes -= size_bytes
            return True

    def give_back(self, size_bytes: int) -> None:
        """Return an object's room."""
        with self._lock:
            self._left_bytes += size_bytes


class ReadAround:
    """The random reads of one object. The reader's lock is held during each call.

    Args:
        size_bytes: of the object.
        blocks: the blocks of MOST_BYTES that are read ahead in the background here. Other
            processes have the others.
    """

    def __init__(self, share: PageCacheShare, size_bytes: int, blocks: range) -> None:
        self._share = share
        self._size_bytes = size_bytes
        self._blocks = blocks
        self._background_block: int | None = None  # in flight
        self._reserved = False
        self._asked_bytes = 0
        self._fetched_bytes = 0
        self._in_flight: set[int] = set()  # starts of the ranges that reads are fetching
        self._given = bytearray(-(-size_bytes // _CHUNK_BYTES))  # 1: the kernel has the chunk
        self._dropped_reads = 0

    def begin(self, offset: int, end: int) -> tuple[int, int]:
        """The range to fetch for a read of ``[offset, end)``. :meth:`end` must follow."""
        self._asked_bytes += end - offset
        first, last = self._around(offset, end)
        self._fetched_bytes += last - first
        return first, last

    def _around(self, offset: int, end: int) -> tuple[int, int]:
        most_bytes = min(MOST_BYTES, self._asked_bytes // _READ_DIVISOR)
        if most_bytes <= end - offset:
            return offset, end
        block_bytes = 1 << (most_bytes.bit_length() - 1)  # a power of 2: blocks do not overlap
        first = offset - offset % block_bytes
        in_flight = first in self._in_flight or first // MOST_BYTES == self._background_block
        if end > first + block_bytes or in_flight:
            return offset, end
        if self._given[offset // _CHUNK_BYTES]:
            self._dropped_reads += 1  # the kernel would not ask for a page that it still has
        if not self._pays():
            return offset, end
        self._in_flight.add(first)
        return first, min(first + block_bytes, self._size_bytes)

    def end(self, first: int) -> None:
        """Note that the range that starts at ``first`` is no longer in flight."""
        self._in_flight.discard(first)

    def next_background(self) -> tuple[int, int] | None:
        """The next range to read ahead in the background; None if nothing pays now.

        The previous range is no longer in flight. If it was not :meth:`given`, it comes again.
        """
        self._background_block = None
        left_bytes = self._asked_bytes * _BACKGROUND_FACTOR - self._fetched_bytes
        if self._asked_bytes < _BACKGROUND_ASKED_BYTES or left_bytes < MOST_BYTES:
            return None
        if len(self._in_flight) > _BACKGROUND_READS:
            return None
        while self._blocks and self._pays():
            block = self._blocks[0]
            begin, end = block * _CHUNKS, min((block + 1) * _CHUNKS, len(self._given))
            first = self._given.find(0, begin, end)
            if first < 0 or block * MOST_BYTES in self._in_flight:
                self._blocks = self._blocks[1:]
                continue
            last = self._given.find(1, first, end)
            span = (
                first * _CHUNK_BYTES,
                min((last if last >= 0 else end) * _CHUNK_BYTES, self._size_bytes),
            )
            self._background_block = block
            self._fetched_bytes += span[1] - span[0]
            return span
        return None

    def given(self, first: int, last: int) -> None:
        """Note that the kernel was given ``[first, last)``."""
        low = -(-first // _CHUNK_BYTES)
        high = len(self._given) if last == self._size_bytes else last // _CHUNK_BYTES
        self._given[low:high] = b"\1" * (high - low)

    def pause(self) -> None:
        """Note that the object is not read for now, so others may have its page cache room."""
        if self._reserved:
            self._share.give_back(self._size_bytes)
        self._reserved = False

    def _pays(self) -> bool:
        """Whether the page cache keeps what it is given, and has room for the object."""
        if self._dropped_reads > _DROPPED_READS:
            return False
        if not self._reserved:
            self._reserved = self._share.reserve(self._size_bytes)
        return self._reserved
