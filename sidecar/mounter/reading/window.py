"""The read windows of one object: which parts are in memory, and which are fetched next.

The reader that owns the windows locks them, and answers the reads.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from sidecar.mounter.cache.cache_entry import CACHE_BLOCK_BYTES, CacheEntry
from sidecar.mounter.reading.buffers import BufferPool, Holder
from sidecar.mounter.reading.fetcher import WHOLE_OBJECT_BYTES, Fetcher
from sidecar.mounter.reading.read_ahead_size import ReadAheadSize
from sidecar.mounter.store.in_flight import InFlight
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.units import MIB

FIRST_PART_BYTES = 1 * MIB
SEEK_FORWARD_BYTES = 16 * MIB
"""A read at most this far ahead of a window belongs to it (skipping in a record file)."""
FOLLOW_BYTES = CACHE_BLOCK_BYTES
"""A read follows another one if it starts at most this far after its end."""
KEEP_BEHIND_BYTES = 4 * MIB
"""Kept behind the reader: the kernel's readahead asks out of order, and readers step back."""
MAX_STREAMS = 8
"""How many streams of one object are told apart, such as the columns of a table, or its readers.
Each has a window."""
_REMEMBERED_ENDS = 8
_MOST_SPLIT = 16
"""A small window has smaller parts, so that it has up to this many."""
SLOW_S = 0.25
"""A part that takes longer is read as it arrives. Any other is read when it is complete: reading
along would hold up the connection that everybody waits for."""
_SURE_READS = 4
"""After this many reads in sequence, a gap is taken for reads that come out of order."""


class Part:
    """A range of the object in memory, or in flight.

    Attributes:
        is_done: whether the fetch has ended, well or not.
        error: why the fetch failed. Bytes that had arrived before can be read all the same.
        entry: where the range is cached. Released when the fetch ends.
    """

    __slots__ = (
        "_arrived_to",
        "_began_s",
        "_delay_s",
        "_lock",
        "_pool",
        "_users",
        "_waiting",
        "buffer",
        "end",
        "entry",
        "error",
        "is_done",
        "start",
    )

    def __init__(
        self, start: int, buffer: bytearray, pool: BufferPool, entry: CacheEntry | None
    ) -> None:
        self.start = start
        self.end = start + len(buffer)
        self.buffer: bytearray | None = buffer
        self._pool = pool
        self.entry = entry
        self.is_done = False
        self.error: BaseException | None = None
        self._began_s = 0.0
        self._delay_s = math.inf
        self._users = 2  # the window and the fetch
        self._arrived_to = start
        self._waiting: list[tuple[int, Callable[[], None]]] = []
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Count one more user (:class:`.fetcher.BufferUsers`)."""
        with self._lock:
            self._users += 1

    def drop(self) -> None:
        """Count one user less. The last one gives the buffer back."""
        with self._lock:
            self._users -= 1
            if self._users or self.buffer is None:
                return
            buffer, self.buffer = self.buffer, None
        self._pool.give_back(buffer)

    def is_here(self, end: int) -> bool:
        """Whether nobody waits for the bytes before ``end``: they are here, or never will be.

        A part in flight has no bytes for readers, unless it is slow.
        """
        return self.is_done or (time.monotonic() - self._began_s >= SLOW_S and self.has(end))

    def has(self, end: int) -> bool:
        """Whether the bytes before ``end`` are here."""
        return self._arrived_to >= min(end, self.end)

    def when_here(self, end: int, callback: Callable[[], None]) -> bool:
        """Call back from the thread that fetches. False if no wait is needed any more."""
        with self._lock:
            if self.is_here(end):
                return False
            self._waiting.append((end, callback))
            return True

    def wait(self, end: int) -> None:
        """Wait for the bytes before ``end``, or for the failure."""
        if self.is_here(end):
            return
        here = threading.Event()
        if self.when_here(end, here.set):
            while not (here.wait(SLOW_S) or self.is_here(end)):
                pass

    def _arrived(self, count: int) -> None:
        if self._delay_s == math.inf and self.start + count < self.end:
            self._delay_s = time.monotonic() - self._began_s
        with self._lock:
            self._arrived_to = self.start + count
            if not self._waiting:
                return
            ready = [callback for end, callback in self._waiting if self.is_here(end)]
            self._waiting = [one for one in self._waiting if not self.is_here(one[0])]
        for callback in ready:
            callback()

    def fetch(self, fetcher: Fetcher, info: ObjectInfo) -> None:
        """Fetch the range, which is counted as in flight.

        Raises nothing: a failure is in :attr:`error`.
        """
        in_flight = fetcher.in_flight
        self._began_s = time.monotonic()
        try:
            assert self.buffer is not None
            content = memoryview(self.buffer)
            fetcher.fetch(info, self.entry, self.start, content, self, self._arrived)
            self._arrived(self.end - self.start)
        except BaseException as error:  # noqa: BLE001 - raised again in each reader's thread
            self.error = error
        finally:
            with self._lock:
                self.is_done = True
                waiting, self._waiting = self._waiting, []
            # The next part begins before this one is read.
            size = self._arrived_to - self.start
            in_flight.end(size, self._began_s, self._delay_s, time.monotonic())
            for _, callback in waiting:
                callback()
            if self.entry is not None and fetcher.cache is not None:
                fetcher.cache.release(self.entry)
            self.drop()


class Window:
    """The bytes of one stream in memory: contiguous parts from :attr:`start` to :attr:`end`.

    Attributes:
        position: how far the stream was read.
        ahead: how far ahead of that the window may reach.
        next_part_bytes: size of the next part. None: just what the read needs.
        reads: how many came in sequence. Each one makes the next one more likely.
    """

    __slots__ = (
        "_go_on",
        "_is_limit",
        "ahead",
        "end",
        "next_part_bytes",
        "parts",
        "position",
        "reads",
    )

    def __init__(self, offset: int, next_part_bytes: int, go_on: Callable[[Window], None]) -> None:
        self._go_on = go_on
        self.parts: deque[Part] = deque()
        self.ahead = ReadAheadSize(offset)
        self.restart(offset)
        self.next_part_bytes: int | None = next_part_bytes

    @property
    def start(self) -> int:
        """The start of its first part."""
        return self.parts[0].start if self.parts else self.end

    @property
    def longest_gap_bytes(self) -> int:
        """The longest gap before a read that is fetched, too."""
        if self.reads < _SURE_READS or self.next_part_bytes is None:
            return FOLLOW_BYTES
        return self.next_part_bytes

    def restart(self, offset: int) -> None:
        """Go on at ``offset``, as small as at first."""
        self.close()
        self.position = self.end = offset
        self.ahead.restart(offset)
        self.next_part_bytes = None
        self._is_limit = False
        self.reads = 0

    def go_on(self) -> None:
        """Begin one more part, because it is the window's turn (:class:`.in_flight.Waiter`)."""
        self._go_on(self)

    def waits(self, in_flight: InFlight) -> None:
        """Note that the reader has to wait for a part."""
        is_fetched = self.end - self.position >= self.ahead.bytes
        self._is_limit = is_fetched and not in_flight.is_full

    def waited(self, in_flight: InFlight) -> None:
        """Note that the reader has the part."""
        if self.reads > 1:  # the first read always has to wait
            self.ahead.waited(self.position, in_flight.bytes, is_limit=self._is_limit)
        self._is_limit = False

    def append(self, part: Part) -> None:
        """Add the next part, which is about to be fetched."""
        self.ahead.went_on(self.position, self._ready_bytes)
        self.parts.append(part)
        self.end = part.end

    @property
    def _ready_bytes(self) -> int:
        """The bytes in memory after the reader's position, without a gap."""
        end = self.position
        for part in self.parts:
            if not part.is_done:
                break
            end = max(end, part.end)
        return end - self.position

    def has_failed(self, offset: int, end: int) -> bool:
        """Whether a part of ``[offset, end)`` has failed, for every read."""
        return any(
            part.error is not None and part.start < end and part.end > offset and not part.has(end)
            for part in self.parts
        )

    def close(self) -> None:
        """Drop the parts. Parts in flight are dropped when they arrive."""
        while self.parts:
            self.parts.popleft().drop()


class Windows:
    """All windows of one reader. The reader's lock is held during each call.

    Args:
        info: the object's pinned version.
        alignment_bytes: ranges start and end at multiples of this, or at the object's end.
        go_on: called, with the lock held, when it is a window's turn; :meth:`go_on` follows.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        info: ObjectInfo,
        alignment_bytes: int,
        go_on: Callable[[Window], None],
    ) -> None:
        self._fetcher = fetcher
        self._in_flight = fetcher.in_flight
        self._go_on = go_on
        self._info = info
        self._alignment_bytes = alignment_bytes
        self._windows: list[Window] = []  # the most recently used is last
        self._ends: deque[int] = deque(maxlen=_REMEMBERED_ENDS)
        # If one part took all of a small budget, there would never be room for the next one.
        quarter = fetcher.buffers.budget_bytes // 4
        unit = max(alignment_bytes, CACHE_BLOCK_BYTES)
        part_bytes = min(fetcher.part_bytes, max(quarter, unit))
        self._unit = unit
        self._part_bytes = part_bytes - part_bytes % unit
        self._first_part_bytes = max(FIRST_PART_BYTES, alignment_bytes)

    def find(self, offset: int, end: int, holder: Holder, *, may_open: bool) -> Window | None:
        """The window that a read of ``[offset, end)`` belongs to; None if it has none.

        Args:
            holder: the reader; it is registered with the buffers if a window is opened.
            may_open: whether the read may open a window, or move one.
        """
        window = self._nearest(offset)
        if window is not None:
            failed = window.has_failed(offset, end)
            if not may_open and (failed or end > window.end):
                return None
            self._windows.remove(window)
            self._windows.append(window)
            if failed or offset > window.end + window.longest_gap_bytes:
                window.restart(offset - offset % self._alignment_bytes)
                self._in_flight.forget(window)
            return window
        is_small = self._info.size_bytes <= WHOLE_OBJECT_BYTES
        follows = any(near <= offset <= near + FOLLOW_BYTES for near in self._ends)
        if not (may_open and (is_small or follows or offset == 0)):
            return None
        if is_small:
            window = Window(0, self._info.size_bytes, self._go_on)
        else:
            start = offset - offset % self._alignment_bytes
            window = Window(start, self._first_part_bytes, self._go_on)
        if len(self._windows) == MAX_STREAMS:
            self._close(self._windows.pop(0))
        self._windows.append(window)
        self._fetcher.buffers.register(holder)
        return window

    def remember_end(self, end: int) -> None:
        """Note the end of a read without a window. A read that follows it opens a window."""
        self._ends.append(end)

    def cover(
        self, window: Window, offset: int, end: int, entry: CacheEntry | None, holder: Holder
    ) -> tuple[list[Part], Part | None]:
        """The parts that hold ``[offset, end)``, held for the caller; none beyond the budget.

        Also starts readahead. The second result is the first part that nobody is fetching: the
        caller must fetch it. It has to wait anyway, and so no other thread is woken.

        Args:
            entry: where the object is cached, if it is.
        """
        missing: Part | None = None
        while window.end < end:
            if self._join_next(window):
                continue
            part = self._append_part(window, end, entry, holder)
            if part is not None:
                self._in_flight.begin_now()
            else:
                if missing is not None:
                    self._submit(missing)
                return [], None
            if missing is None:
                missing = part
            else:
                self._submit(part)
        window.position = max(window.position, end)
        needed = [part for part in window.parts if part.start < end and part.end > offset]
        for part in needed:
            part.hold()
        while window.parts and window.parts[0].end <= window.position - KEEP_BEHIND_BYTES:
            window.parts.popleft().drop()
        if window.reads and self._info.size_bytes > WHOLE_OBJECT_BYTES:
            self._read_ahead(window, entry, holder)
        window.reads += 1
        return needed, missing

    def close(self, holder: Holder) -> bool:
        """Drop all windows. False if there were none."""
        had_some = bool(self._windows)
        for window in self._windows:
            self._close(window)
        self._windows.clear()
        self._fetcher.buffers.unregister(holder)
        return had_some

    def go_on(self, window: Window, entry: CacheEntry | None, holder: Holder) -> None:
        """Let the window have more parts in flight, if it is its turn."""
        if window in self._windows:
            self._read_ahead(window, entry, holder)

    def _close(self, window: Window) -> None:
        window.close()
        self._in_flight.forget(window)

    def _nearest(self, offset: int) -> Window | None:
        """The window that has the offset, else the one that ends closest before it."""
        best: Window | None = None
        for window in self._windows:
            if window.start <= offset < window.end:
                return window
            reaches = window.end <= offset < window.end + SEEK_FORWARD_BYTES
            if reaches and (best is None or window.end > best.end):
                best = window
        return best

    def _read_ahead(self, window: Window, entry: CacheEntry | None, holder: Holder) -> None:
        buffers = self._fetcher.buffers
        ahead_bytes = min(window.ahead.bytes, buffers.budget_bytes)
        share_bytes = buffers.share_bytes // len(self._windows)
        next_start = self._next_start(window)
        while window.end - window.position < ahead_bytes and window.end < next_start:
            if not self._in_flight.begin(window):
                return
            # More than a share may be used, except what new streams must find free.
            has_room = window.end - window.position < share_bytes or not buffers.is_short
            part = self._append_part(window, window.end, entry, holder) if has_room else None
            if part is None:
                self._in_flight.give_up(window)
                return
            self._submit(part)

    def _next_start(self, window: Window) -> int:
        """The start of the next window, else the object's end. Nothing is fetched twice."""
        return min(
            (other.start for other in self._windows if other.parts and other.start >= window.end),
            default=self._info.size_bytes,
        )

    def _join_next(self, window: Window) -> bool:
        """Take over the window that starts where this one ends. False if there is none."""
        for other in self._windows:
            if other is not window and other.parts and other.start == window.end:
                self._windows.remove(other)
                self._in_flight.forget(other)
                window.parts += other.parts
                window.end = other.end
                window.next_part_bytes = max(
                    window.next_part_bytes or 0, other.next_part_bytes or 0
                )
                if other.ahead.bytes > window.ahead.bytes:
                    window.ahead = other.ahead
                return True
        return False

    def _append_part(
        self, window: Window, end: int, entry: CacheEntry | None, holder: Holder
    ) -> Part | None:
        """Append the next part, for somebody to fetch.

        None at the end of the object, at the next window, and beyond the budget.
        """
        size = window.next_part_bytes
        if size is None:
            size = -(-end // self._alignment_bytes) * self._alignment_bytes - window.end
        size = min(size, self._next_start(window) - window.end)
        if size <= 0:
            return None
        buffers = self._fetcher.buffers
        buffer = buffers.take(size)
        if buffer is None and buffers.reclaim(holder):
            buffer = buffers.take(size)
        if buffer is None:
            return None
        cache = self._fetcher.cache
        if entry is not None and cache is not None:
            cache.retain(entry)
        part = Part(window.end, buffer, buffers, entry)
        window.append(part)
        doubled = 2 * (window.next_part_bytes or 0)
        window.next_part_bytes = min(
            max(doubled, self._first_part_bytes), self._part_bytes, self._wanted_bytes(window)
        )
        return part

    def _wanted_bytes(self, window: Window) -> int:
        """The largest size for the window's next part: whole units."""
        wanted = self._in_flight.part_bytes
        if not self._in_flight.is_full and window.ahead.has_grown:
            wanted = min(wanted, window.ahead.bytes // min(self._in_flight.most, _MOST_SPLIT))
        wanted = 1 << max(wanted, 1).bit_length() - 1  # few sizes, so that buffers are used again
        return max(wanted - wanted % self._unit, self._first_part_bytes)

    def _submit(self, part: Part) -> None:
        self._fetcher.threads.submit(part.fetch, self._fetcher, self._info)
