"""The read windows of one open file: how far ahead of the reader the store is asked.

A handle starts with nothing. Reads that follow each other become a stream with a window of
parts that are fetched at the same time by several connections; the window doubles only
when the reader had to wait, so a slow reader costs little and a fast one gets bandwidth.
Reads that follow nothing are fetched as they are, in the caller's thread.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sidecar.errors import WouldBlock
from sidecar.mounter.cache.cache_entry import CACHE_BLOCK_BYTES, CacheEntry
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.reading.fetcher import ALONE, Fetcher
from sidecar.mounter.reading.read_around import MOST_BYTES, ReadAround
from sidecar.mounter.store.interface import ObjectInfo

log = logging.getLogger(__name__)

MIB = 1024 * 1024

WHOLE_OBJECT_BYTES = 1 * MIB
"""Objects up to this size are fetched whole at the first read."""
FIRST_PART_BYTES = 1 * MIB
SEEK_FORWARD_BYTES = 16 * MIB
"""A read so little ahead of a window belongs to it (skipping in a record file)."""
FOLLOW_BYTES = CACHE_BLOCK_BYTES
"""A read so little ahead of where another one ended follows it."""
KEEP_BEHIND_BYTES = 4 * MIB
"""Kept behind the reader: the kernel's readahead asks out of order, and readers step back."""
MAX_WINDOW_BYTES = 64 * MIB
MAX_STREAMS = 8
"""Interleaved streams of one object, such as the columns of a table, or its readers."""
IDLE_S = 1.0
"""A window that was not read for so long may be dropped when another one needs memory."""
_REMEMBERED_ENDS = 8
_SURE_READS = 4


def _nothing() -> None:
    """Nothing to release: the bytes belong to the result alone."""


class ReadResult(NamedTuple):
    """Bytes for one read. ``release`` must be called once they were copied or sent.

    Attributes:
        surplus: what was fetched beside them, by its offset; for the kernel's page cache.
        given: to be called once the kernel has the surplus.
    """

    views: list[memoryview]
    release: Callable[[], None]
    surplus: Sequence[tuple[int, memoryview]] = ()
    given: Callable[[], None] = _nothing


class _Part:
    """A range of the object in memory, or on its way there.

    Attributes:
        entry: where it is cached, held until the fetch ended.
    """

    __slots__ = (
        "_callbacks",
        "_users",
        "buffer",
        "done",
        "end",
        "entry",
        "error",
        "lock",
        "pool",
        "start",
    )

    def __init__(
        self, start: int, buffer: bytearray, pool: BufferPool, entry: CacheEntry | None
    ) -> None:
        self.start = start
        self.end = start + len(buffer)
        self.buffer: bytearray | None = buffer
        self.pool = pool
        self.entry = entry
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._users = 2  # the window, and the fetch
        self._callbacks: list[Callable[[], None]] = []
        self.lock = threading.Lock()

    def hold(self) -> None:
        with self.lock:
            self._users += 1

    def drop(self) -> None:
        with self.lock:
            self._users -= 1
            if self._users or self.buffer is None:
                return
            buffer, self.buffer = self.buffer, None
        self.pool.give_back(buffer)

    def when_done(self, callback: Callable[[], None]) -> bool:
        """Call back from the thread that fetches; False if the fetch has ended already."""
        with self.lock:
            if self.done.is_set():
                return False
            self._callbacks.append(callback)
            return True

    def fetch(self, fetcher: Fetcher, info: ObjectInfo) -> None:
        try:
            assert self.buffer is not None
            fetcher.fetch(info, self.entry, self.start, memoryview(self.buffer), self)
        except BaseException as error:  # noqa: BLE001 - raised again in each reader's thread
            self.error = error
        finally:
            with self.lock:
                self.done.set()
                callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()
            if self.entry is not None and fetcher.cache is not None:
                fetcher.cache.release(self.entry)
            self.drop()


class _Stream:
    """One window: contiguous parts from ``parts[0].start`` to ``end``.

    Attributes:
        position: how far it was read.
        window_bytes: how far ahead of that it may reach.
        next_part_bytes: 0 for a part that is just what is read.
        reads: how many came one after the other; each makes the next one more likely.
    """

    __slots__ = ("end", "next_part_bytes", "parts", "position", "reads", "window_bytes")

    def __init__(self, offset: int) -> None:
        self.parts: deque[_Part] = deque()
        self.next_part_bytes = FIRST_PART_BYTES
        self.restart(offset)

    @property
    def start(self) -> int:
        return self.parts[0].start if self.parts else self.end

    @property
    def tolerated_bytes(self) -> int:
        """The longest gap that is fetched too: the kernel asks a little out of order."""
        return self.next_part_bytes if self.reads >= _SURE_READS else FOLLOW_BYTES

    def restart(self, offset: int) -> None:
        """Go on elsewhere, as carefully as at first."""
        self.close()
        self.position = self.end = offset
        self.window_bytes = FIRST_PART_BYTES
        self.reads = 0

    def close(self) -> None:
        while self.parts:
            self.parts.popleft().drop()


class ObjectReader:
    """Reads one version of one object. Safe to use from any thread.

    Args:
        info: the object's pinned version.
        surplus: where the caller gives the kernel what is brought beyond the question: the
            blocks of :data:`.read_around.MOST_BYTES` that come here and not to another process.
    """

    def __init__(self, fetcher: Fetcher, info: ObjectInfo, *, surplus: range | None = None) -> None:
        self.info = info
        self._fetcher = fetcher
        self._lock = threading.Lock()
        self._streams: list[_Stream] = []
        self._ends: deque[int] = deque(maxlen=_REMEMBERED_ENDS)
        self._closed = False
        self._used_s = 0.0
        self._entry: CacheEntry | None = None
        self._enter()
        self._rested = False
        self._read_around: ReadAround | None = None
        if surplus is not None and self._entry is None and info.size_bytes > WHOLE_OBJECT_BYTES:
            self._read_around = ReadAround(fetcher.page_cache, info.size_bytes, surplus)
        self._bringing = threading.Lock()
        # A part must not be so large that a small budget never has room for the next one.
        quarter = fetcher.buffers.budget_bytes // 4
        self._part_bytes = min(fetcher.part_bytes, max(quarter, CACHE_BLOCK_BYTES))
        self._part_bytes -= self._part_bytes % CACHE_BLOCK_BYTES
        # Whole blocks are fetched where they can be kept.
        self._grain_bytes = CACHE_BLOCK_BYTES if self._entry is not None else 1

    def read(self, offset: int, size: int, *, wait: bool = True) -> ReadResult:
        """The bytes of ``[offset, offset + size)`` that the object has.

        Raises:
            WouldBlock: they are not here yet and the caller does not ``wait``.
            Stale: the object changed. Nothing of another version is ever returned.
            Unavailable: the store could not be reached within the retry budget; the next
                read tries again.
        """
        end = min(offset + size, self.info.size_bytes)
        if offset >= end:
            return ReadResult([], _nothing)
        with self._lock:
            self._used_s = time.monotonic()
            if self._rested and wait and not self._closed:
                self._rested = False
                self._enter()
            stream = self._find_stream(offset, end, wait)
            parts, missing = self._cover(stream, offset, end) if stream is not None else ([], None)
            entry = None
            if not parts and wait:
                self._ends.append(end)
                entry = self._hold_entry()
            self._drop_if_read(offset, end)
        if stream is None or not parts:
            if not wait:
                raise WouldBlock(self.info.key)
            return self._read_directly(entry, offset, end)
        return self._read_parts(stream, parts, missing, offset, end, wait)

    def read_when_here(
        self, offset: int, size: int, take: Callable[[ReadResult | Exception], None]
    ) -> bool:
        """Have the bytes, or what :meth:`read` would raise, given to ``take``.

        At once where they are here, else from the thread that fetches the last of them, so
        that nobody has to be woken who only waits. False, and nothing is done, where they
        are not being fetched: then :meth:`read` must be called.
        """
        end = min(offset + size, self.info.size_bytes)
        if offset >= end:
            take(ReadResult([], _nothing))
            return True
        with self._lock:
            self._used_s = time.monotonic()
            stream = self._find_stream(offset, end, False)
            if stream is None:
                return False
            parts, _ = self._cover(stream, offset, end)
            self._drop_if_read(offset, end)
        self._hand_over(stream, parts, offset, end, take, None)
        return True

    def bring_more(self, give: Callable[[int, memoryview], None]) -> None:
        """Fetch what random reads will ask for next, as far as those before make it pay.

        Returns at once where another thread is at it. Raises as :meth:`read`.

        Args:
            give: gives the kernel content from an offset.
        """
        read_around = self._read_around
        if read_around is None or not self._bringing.acquire(blocking=False):
            return
        try:
            buffer = memoryview(b"")
            while (span := self._next_behind(read_around)) is not None:
                first, last = span
                buffer = buffer or memoryview(bytearray(MOST_BYTES))
                content = buffer[: last - first]
                self._fetcher.get(self.info, first, content)
                give(first, content)
                self._given(first, last)
        finally:
            self._bringing.release()

    def give_up_idle(self) -> bool:
        """Drop windows that nobody reads at the moment (:class:`.buffers.Holder`)."""
        return self.drop_idle(IDLE_S)

    def drop_idle(self, idle_s: float) -> bool:
        """Drop windows that nobody read for ``idle_s``; False where that is none.

        The disk cache may evict the object then; the next read looks what is there by then.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if time.monotonic() - self._used_s < idle_s:
                return False
            if self._read_around is not None:
                self._read_around.rest()
            self._leave()
            self._rested = True
            if not self._streams:
                return False
            self._close_streams()
            return True
        finally:
            self._lock.release()

    def close(self) -> None:
        """Drop the windows. Parts on their way are dropped when they arrive."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._close_streams()
            if self._read_around is not None:
                self._read_around.rest()
            self._leave()

    # --- windows; the lock is held ---------------------------------------------------

    def _enter(self) -> None:
        """Use the cache's entry, if it has or may have one."""
        if self._fetcher.cache is not None:
            create = self.info.size_bytes > WHOLE_OBJECT_BYTES
            self._entry = self._fetcher.cache.acquire(self.info, create=create)

    def _leave(self) -> None:
        """Use it no more."""
        entry, self._entry = self._entry, None
        if entry is not None and self._fetcher.cache is not None:
            self._fetcher.cache.release(entry)

    def _hold_entry(self) -> CacheEntry | None:
        """The cache entry, held for one fetch."""
        if self._closed or self._entry is None or self._fetcher.cache is None:
            return None
        self._fetcher.cache.retain(self._entry)
        return self._entry

    def _next_behind(self, read_around: ReadAround) -> tuple[int, int] | None:
        with self._lock:
            return None if self._closed or self._rested else read_around.behind()

    def _find_stream(self, offset: int, end: int, wait: bool) -> _Stream | None:
        """The window that a read belongs to; only who may wait begins or moves one."""
        if self._closed:
            return None
        stream = self._nearest(offset)
        if stream is not None:
            failed = _failed(stream, offset, end)
            if not wait and (failed or end > stream.end):
                return None
            self._streams.remove(stream)
            self._streams.append(stream)  # most recently used last
            if failed or offset > stream.end + stream.tolerated_bytes:
                # What lies between is not fetched.
                stream.restart(offset - offset % self._grain_bytes)
                stream.next_part_bytes = 0
            return stream
        small = self.info.size_bytes <= WHOLE_OBJECT_BYTES
        follows = any(near <= offset <= near + FOLLOW_BYTES for near in self._ends)
        if not (wait and (small or follows or offset == 0)):
            return None
        stream = _Stream(0 if small else offset - offset % self._grain_bytes)
        if small:
            stream.next_part_bytes = self.info.size_bytes
        if len(self._streams) == MAX_STREAMS:
            self._streams.pop(0).close()
        self._streams.append(stream)
        self._fetcher.buffers.register(self)
        return stream

    def _nearest(self, offset: int) -> _Stream | None:
        """The window that has the offset, else the one that ends a little before it."""
        best: _Stream | None = None
        for stream in self._streams:
            if stream.start <= offset < stream.end:
                return stream
            reaches = stream.end <= offset < stream.end + SEEK_FORWARD_BYTES
            if reaches and (best is None or stream.end > best.end):
                best = stream
        return best

    def _cover(self, stream: _Stream, offset: int, end: int) -> tuple[list[_Part], _Part | None]:
        """The parts that hold ``[offset, end)``, held; none beyond the budget.

        The first of them that nobody fetches yet is for the caller to fetch: it has to
        wait anyway, and a thread less is woken.
        """
        missing: _Part | None = None
        while stream.end < end:
            if self._join(stream):
                continue
            part = self._ask(stream, end)
            if part is None:
                if missing is not None:
                    self._submit(missing)
                return [], None
            if missing is None:
                missing = part
            else:
                self._submit(part)
        stream.position = max(stream.position, end)
        needed = [part for part in stream.parts if part.start < end and part.end > offset]
        for part in needed:
            part.hold()
        while stream.parts and stream.parts[0].end <= stream.position - KEEP_BEHIND_BYTES:
            stream.parts.popleft().drop()
        if stream.reads and self.info.size_bytes > WHOLE_OBJECT_BYTES:
            self._read_ahead(stream)
        stream.reads += 1
        return needed, missing

    def _read_ahead(self, stream: _Stream) -> None:
        share_bytes = self._fetcher.buffers.share_bytes // len(self._streams)
        window_bytes = min(stream.window_bytes, share_bytes)
        while stream.end - stream.position < window_bytes:
            part = self._ask(stream, stream.end)
            if part is None:
                return
            self._submit(part)

    def _next_start(self, stream: _Stream) -> int:
        """Where the next window begins, else the object's end: nothing is fetched twice."""
        return min(
            (other.start for other in self._streams if other.parts and other.start >= stream.end),
            default=self.info.size_bytes,
        )

    def _join(self, stream: _Stream) -> bool:
        """Go on in the window that begins where this one ends, if there is one."""
        for other in self._streams:
            if other is not stream and other.parts and other.start == stream.end:
                self._streams.remove(other)
                stream.parts += other.parts
                stream.end = other.end
                stream.next_part_bytes = max(stream.next_part_bytes, other.next_part_bytes)
                stream.window_bytes = max(stream.window_bytes, other.window_bytes)
                return True
        return False

    def _ask(self, stream: _Stream, end: int) -> _Part | None:
        """Append the next part; None at the end of the object or of the budget."""
        size = stream.next_part_bytes
        if not size:
            size = -(-end // self._grain_bytes) * self._grain_bytes - stream.end
        size = min(size, self._next_start(stream) - stream.end)
        if size <= 0:
            return None
        buffers = self._fetcher.buffers
        buffer = buffers.take(size)
        if buffer is None and buffers.reclaim(self):
            buffer = buffers.take(size)
        if buffer is None:
            return None
        part = _Part(stream.end, buffer, buffers, self._hold_entry())
        stream.parts.append(part)
        stream.end = part.end
        stream.next_part_bytes = min(
            max(stream.next_part_bytes * 2, FIRST_PART_BYTES), self._part_bytes
        )
        return part

    def _submit(self, part: _Part) -> None:
        self._fetcher.threads.submit(part.fetch, self._fetcher, self.info)

    def _drop_if_read(self, offset: int, end: int) -> None:
        """A small object that is read whole is in the kernel's page cache from now on."""
        if offset == 0 and end == self.info.size_bytes <= WHOLE_OBJECT_BYTES:
            self._close_streams()

    def _close_streams(self) -> None:
        for stream in self._streams:
            stream.close()
        self._streams.clear()
        self._fetcher.buffers.unregister(self)

    # --- reading; the lock is not held ------------------------------------------------

    def _read_directly(self, entry: CacheEntry | None, offset: int, end: int) -> ReadResult:
        first = offset - offset % self._grain_bytes
        last = min(-(-end // self._grain_bytes) * self._grain_bytes, self.info.size_bytes)
        if self._read_around is not None:
            with self._lock:
                first, last = self._read_around.begin(offset, end)
        buffer = memoryview(bytearray(last - first))
        fetcher = self._fetcher
        began_s = time.perf_counter()
        try:
            fetcher.fetch(self.info, entry, first, buffer, ALONE)
        except BaseException:
            self._end(first)
            raise
        finally:
            if entry is not None and fetcher.cache is not None:
                fetcher.cache.release(entry)
        fetcher.metrics.stall_seconds.inc(time.perf_counter() - began_s)
        fetcher.metrics.cache_misses.inc()
        views = [buffer[offset - first : end - first]]
        if self._read_around is None:
            return ReadResult(views, _nothing)
        before, behind = buffer[: offset - first], buffer[end - first :]
        return ReadResult(
            views,
            functools.partial(self._end, first),
            [(at, view) for at, view in ((first, before), (end, behind)) if view],
            functools.partial(self._given, first, last),
        )

    def _end(self, first: int) -> None:
        if self._read_around is not None:
            with self._lock:
                self._read_around.end(first)

    def _given(self, first: int, last: int) -> None:
        if self._read_around is not None:
            with self._lock:
                self._read_around.given(first, last)

    def _read_parts(
        self,
        stream: _Stream,
        parts: list[_Part],
        missing: _Part | None,
        offset: int,
        end: int,
        wait: bool,
    ) -> ReadResult:
        began_s = time.perf_counter() if missing is not None else None
        if missing is not None:
            missing.fetch(self._fetcher, self.info)
        for part in parts:
            if not part.done.is_set():
                if not wait:
                    for held in parts:
                        held.drop()
                    raise WouldBlock(self.info.key)
                began_s = began_s or time.perf_counter()
                part.done.wait()
        return self._result(stream, parts, offset, end, began_s)

    def _hand_over(
        self,
        stream: _Stream,
        parts: list[_Part],
        offset: int,
        end: int,
        take: Callable[[ReadResult | Exception], None],
        began_s: float | None,
    ) -> None:
        for part in parts:
            if not part.done.is_set():
                began_s = began_s or time.perf_counter()
                again = functools.partial(
                    self._hand_over, stream, parts, offset, end, take, began_s
                )
                if part.when_done(again):
                    return
        result: ReadResult | Exception
        try:
            result = self._result(stream, parts, offset, end, began_s)
        except Exception as error:  # noqa: BLE001 - raised where it is taken
            result = error
        take(result)

    def _result(
        self, stream: _Stream, parts: list[_Part], offset: int, end: int, began_s: float | None
    ) -> ReadResult:
        """What the parts have, once they are here; ``began_s``: since when that was awaited."""

        def release() -> None:
            for part in parts:
                part.drop()

        for part in parts:
            if part.error is not None:
                release()
                raise part.error
        metrics = self._fetcher.metrics
        if began_s is not None:
            metrics.cache_misses.inc()
            metrics.stall_seconds.inc(time.perf_counter() - began_s)
            with self._lock:
                if stream.reads > 1:  # the first one had to wait anyway
                    stream.window_bytes = min(stream.window_bytes * 2, MAX_WINDOW_BYTES)
        else:
            metrics.cache_hits.inc()
        views = []
        for part in parts:
            assert part.buffer is not None
            low, high = max(offset, part.start), min(end, part.end)
            views.append(memoryview(part.buffer)[low - part.start : high - part.start])
        return ReadResult(views, release)


def _failed(stream: _Stream, offset: int, end: int) -> bool:
    """Whether a part that a read needs failed for another one, or for nobody: ask again."""
    return any(
        part.error is not None and part.start < end and part.end > offset for part in stream.parts
    )
