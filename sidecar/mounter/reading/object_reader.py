"""Reads one version of one object: from its windows, else directly from cache or store.

A handle starts without a window. Reads in sequence become a stream with a window, whose parts
several connections fetch at the same time. A window grows only if the reader had to wait and more
connections would make it faster (:mod:`.read_ahead_size`), so a slow reader costs little and a fast
one gets bandwidth. Other reads are fetched as they are, in the caller's thread. :mod:`.window`
decides which parts a window has.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.mounter.cache.cache_entry import CACHE_BLOCK_BYTES, CacheEntry
from sidecar.mounter.cache.near_block import NEAR_BLOCK_BYTES
from sidecar.mounter.reading.fetcher import NOT_POOLED, WHOLE_OBJECT_BYTES, Fetcher
from sidecar.mounter.reading.read_around import MOST_BYTES, ReadAround
from sidecar.mounter.reading.read_result import ReadResult, nothing
from sidecar.mounter.reading.whole_load import Fill, WholeLoad
from sidecar.mounter.reading.window import Part, Window, Windows
from sidecar.mounter.store.interface import ObjectInfo

IDLE_S = 1.0
"""Windows that were not read for this long may be dropped when another reader needs memory."""


@dataclass(frozen=True, slots=True)
class PageCache:
    """What a reader may put into the kernel's page cache.

    Attributes:
        blocks: the blocks of :data:`.read_around.MOST_BYTES` that it reads ahead in the
            background; other processes have the others.
        region: the bytes that it loads if an object is loaded whole.
        fill: fills the pages of the object.
    """

    blocks: range
    region: range
    fill: Fill


class ObjectReader:
    """Reads one version of one object. Safe to use from any thread.

    Args:
        info: the object's pinned version.
        page_cache: None: the caller cannot fill the kernel's page cache, so nothing is fetched
            around random reads.
    """

    def __init__(
        self, fetcher: Fetcher, info: ObjectInfo, *, page_cache: PageCache | None = None
    ) -> None:
        self.info = info
        self._fetcher = fetcher
        self._lock = threading.Lock()
        self._closed = False
        self._used_s = 0.0
        self._is_idle = False
        self._entry: CacheEntry | None = None
        self._acquire_entry()
        # Caches store whole blocks, so whole blocks are fetched.
        self._alignment_bytes = CACHE_BLOCK_BYTES if self._entry is not None else 1
        # A near bucket's blocks are larger than a single random read may fetch.
        of_windows = self._alignment_bytes if fetcher.near is None else NEAR_BLOCK_BYTES
        self._windows = Windows(fetcher, info, of_windows, self._go_on)
        self._read_around: ReadAround | None = None
        is_large = info.size_bytes > WHOLE_OBJECT_BYTES
        self._page_cache = page_cache if self._entry is None and is_large else None
        if self._page_cache is not None:
            blocks = self._page_cache.blocks
            self._read_around = ReadAround(fetcher.page_cache, info.size_bytes, blocks)
        self._whole: WholeLoad | None = None
        self._has_share = False  # of the page cache, for the whole load
        self._may_load_whole = self._page_cache is not None and fetcher.loads_whole(info)
        self._background = threading.Lock()  # held by the thread that reads ahead

    def read(self, offset: int, size: int) -> ReadResult:
        """The bytes of ``[offset, offset + size)`` that the object has.

        Raises:
            Stale: the object changed. Nothing of another version is ever returned.
            Unavailable: the store could not be reached within the retry budget. The next
                read tries again.
        """
        end = min(offset + size, self.info.size_bytes)
        if offset >= end:
            return ReadResult([], nothing)
        if (result := self._read_of_whole(offset, end)) is not None:
            return result
        with self._lock:
            self._used_s = time.monotonic()
            if self._is_idle and not self._closed:
                self._is_idle = False
                self._acquire_entry()
            # Beside a whole load, a window would fetch the same bytes again, and keep them.
            has_windows = not self._closed and self._whole is None
            window = self._windows.find(offset, end, self, may_open=True) if has_windows else None
            parts: list[Part] = []
            missing: Part | None = None
            entry: CacheEntry | None = None
            if window is not None:
                parts, missing = self._windows.cover(window, offset, end, self._entry, self)
            if not parts:
                self._windows.remember_end(end)
                entry = self._retain_entry()
            self._drop_if_read(offset, end)
        if window is None or not parts:
            if self._begin_whole() and (result := self._read_of_whole(offset, end)):
                return result
            return self._read_directly(entry, offset, end)
        return self._read_parts(window, parts, missing, offset, end)

    def read_when_here(
        self, offset: int, size: int, take: Callable[[ReadResult | Exception], None]
    ) -> bool:
        """Have ``take`` called with the bytes, or with the error that :meth:`read` would raise.

        It is called at once if they are in memory. If they are in flight, the thread that fetches
        the last of them calls it, so that no waiting thread has to be woken. Else this returns
        False and does nothing: the caller must use :meth:`read`.
        """
        end = min(offset + size, self.info.size_bytes)
        if offset >= end:
            take(ReadResult([], nothing))
            return True
        if self._whole is not None and self._whole.covers(offset, end):
            return False
        with self._lock:
            self._used_s = time.monotonic()
            window = None if self._closed else self._windows.find(offset, end, self, may_open=False)
            if window is None:
                return False
            parts, _ = self._windows.cover(window, offset, end, self._entry, self)
            self._drop_if_read(offset, end)
        self._take_when_here(window, parts, offset, end, take, None)
        return True

    def read_ahead_in_background(self, give: Callable[[int, memoryview], None]) -> None:
        """Fetch what random reads will ask for next, as long as earlier reads make it pay.

        Returns at once if another thread is doing so. Raises as :meth:`read`.

        Args:
            give: gives the kernel bytes from an offset.
        """
        read_around = self._read_around
        if read_around is None or not self._background.acquire(blocking=False):
            return
        try:
            buffer = memoryview(b"")
            while (span := self._next_background(read_around)) is not None:
                first, last = span
                buffer = buffer or memoryview(bytearray(MOST_BYTES))
                content = buffer[: last - first]
                self._fetcher.get(self.info, first, content)
                give(first, content)
                self._given(first, last)
        finally:
            self._background.release()

    def give_up_idle(self) -> bool:
        """Drop the windows if nobody reads them now (:class:`.buffers.Holder`)."""
        return self.drop_idle(IDLE_S)

    def drop_idle(self, idle_s: float) -> bool:
        """Drop the windows if they were not read for ``idle_s``. False if none was dropped.

        The disk cache may then evict the object. The next read acquires its entry again.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if time.monotonic() - self._used_s < idle_s:
                return False
            # The whole load stays: it knows what the kernel has, and need not fetch that again.
            self._return_share()
            if self._read_around is not None:
                self._read_around.pause()
            self._release_entry()
            self._is_idle = True
            return self._windows.close(self)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Drop the windows. Parts in flight are dropped when they arrive."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._windows.close(self)
            self._end_whole()
            if self._read_around is not None:
                self._read_around.pause()
            self._release_entry()

    # --- an object that is loaded whole -----------------------------------------------------

    def _begin_whole(self) -> bool:
        """Whether the object is loaded whole from now on: from its first read out of order."""
        with self._lock:
            if not self._may_load_whole or self._closed or self._page_cache is None:
                return False
            if self._whole is None:
                if not self._take_share():
                    self._may_load_whole = False
                    return False
                self._windows.close(self)
                region, fill = self._page_cache.region, self._page_cache.fill
                self._whole = WholeLoad(self._fetcher, self.info, region, fill)
            return True

    def _read_of_whole(self, offset: int, end: int) -> ReadResult | None:
        """Read from an object that is loaded whole; None for any other."""
        whole = self._whole
        if whole is None or not whole.covers(offset, end):
            return None
        self._used_s = time.monotonic()
        if not self._has_share:  # the share was returned while the object was idle
            with self._lock:
                if not self._take_share():
                    self._may_load_whole = False
                    self._end_whole()
                    return None
        began_s = time.perf_counter()
        result = whole.read(offset, end)
        if result is not None:
            self._fetcher.metrics.stall_seconds.inc(time.perf_counter() - began_s)
            self._fetcher.metrics.cache_misses.inc()
        elif not whole.pays:
            with self._lock:
                self._may_load_whole = False
                self._end_whole()
        return result

    def _end_whole(self) -> None:
        """Load no more of the object. The lock is held."""
        if self._whole is not None:
            self._whole.end()
            self._whole = None
        self._return_share()

    def _take_share(self) -> bool:
        """Take room in the page cache; False if there is none. The lock is held."""
        if not self._has_share and self._page_cache is not None:
            self._has_share = self._fetcher.page_cache.reserve(len(self._page_cache.region))
        return self._has_share

    def _return_share(self) -> None:
        """Give that room back. The lock is held."""
        if self._has_share and self._page_cache is not None:
            self._fetcher.page_cache.give_back(len(self._page_cache.region))
        self._has_share = False

    # --- the lock is held -----------------------------------------------------------------

    def _acquire_entry(self) -> None:
        """Acquire the version's cache entry. A small object has none."""
        if self._fetcher.cache is not None and self.info.size_bytes > WHOLE_OBJECT_BYTES:
            self._entry = self._fetcher.cache.acquire(self.info)

    def _release_entry(self) -> None:
        entry, self._entry = self._entry, None
        if entry is not None and self._fetcher.cache is not None:
            self._fetcher.cache.release(entry)

    def _retain_entry(self) -> CacheEntry | None:
        """The cache entry, retained for one fetch."""
        if self._entry is not None and self._fetcher.cache is not None:
            self._fetcher.cache.retain(self._entry)
        return self._entry

    def _drop_if_read(self, offset: int, end: int) -> None:
        """Drop a small object that is read whole: from now on the kernel has its pages."""
        if offset == 0 and end == self.info.size_bytes <= WHOLE_OBJECT_BYTES:
            self._windows.close(self)

    def _go_on(self, window: Window) -> None:
        """Let a window have more parts in flight, if it is its turn."""
        with self._lock:
            if not self._closed:
                self._windows.go_on(window, self._entry, self)

    # --- the lock is not held -------------------------------------------------------------

    def _read_directly(self, entry: CacheEntry | None, offset: int, end: int) -> ReadResult:
        alignment = self._alignment_bytes
        first = offset - offset % alignment
        last = min(-(-end // alignment) * alignment, self.info.size_bytes)
        if self._read_around is not None:
            with self._lock:
                first, last = self._read_around.begin(offset, end)
        fetcher = self._fetcher
        # A buffer that is used again costs no page faults. Buffers around a read have few sizes.
        is_around = last - first > end - offset and self._read_around is not None
        pooled = fetcher.buffers.take(last - first) if is_around else None
        buffer = memoryview(bytearray(last - first) if pooled is None else pooled)
        began_s = time.perf_counter()
        try:
            fetcher.fetch(self.info, entry, first, buffer, NOT_POOLED)
        except BaseException:
            self._end_read_around(first, pooled)
            raise
        finally:
            if entry is not None and fetcher.cache is not None:
                fetcher.cache.release(entry)
        fetcher.metrics.stall_seconds.inc(time.perf_counter() - began_s)
        fetcher.metrics.cache_misses.inc()
        views = [buffer[offset - first : end - first]]
        if self._read_around is None:
            return ReadResult(views, nothing)
        before, after = buffer[: offset - first], buffer[end - first :]
        return ReadResult(
            views,
            functools.partial(self._end_read_around, first, pooled),
            [(at, view) for at, view in ((first, before), (end, after)) if view],
            functools.partial(self._given, first, last),
        )

    def _end_read_around(self, first: int, pooled: bytearray | None) -> None:
        if pooled is not None:
            self._fetcher.buffers.give_back(pooled)
        if self._read_around is not None:
            with self._lock:
                self._read_around.end(first)

    def _given(self, first: int, last: int) -> None:
        if self._read_around is not None:
            with self._lock:
                self._read_around.given(first, last)

    def _next_background(self, read_around: ReadAround) -> tuple[int, int] | None:
        with self._lock:
            return None if self._closed or self._is_idle else read_around.next_background()

    def _read_parts(
        self,
        window: Window,
        parts: list[Part],
        missing: Part | None,
        offset: int,
        end: int,
    ) -> ReadResult:
        began_s = None
        if missing is not None:
            began_s = self._begin_wait(window)
            missing.fetch(self._fetcher, self.info)
        for part in parts:
            if not part.is_here(end):
                began_s = began_s or self._begin_wait(window)
                part.wait(end)
        return self._result(window, parts, offset, end, began_s)

    def _begin_wait(self, window: Window) -> float:
        window.waits(self._fetcher.in_flight)
        return time.perf_counter()

    def _take_when_here(
        self,
        window: Window,
        parts: list[Part],
        offset: int,
        end: int,
        take: Callable[[ReadResult | Exception], None],
        began_s: float | None,
    ) -> None:
        """Call ``take`` once all bytes are here, from the thread that fetches the last of them."""
        for part in parts:
            if not part.is_here(end):
                began_s = began_s or self._begin_wait(window)
                again = functools.partial(
                    self._take_when_here, window, parts, offset, end, take, began_s
                )
                if part.when_here(end, again):
                    return
        result: ReadResult | Exception
        try:
            result = self._result(window, parts, offset, end, began_s)
        except Exception as error:  # noqa: BLE001 - passed on, and raised there
            result = error
        take(result)

    def _result(
        self, window: Window, parts: list[Part], offset: int, end: int, began_s: float | None
    ) -> ReadResult:
        """The bytes of the parts. All of them are here, or never will be.

        Args:
            began_s: when the read began to wait (perf_counter); None if it did not wait.
        """

        def release() -> None:
            for part in parts:
                part.drop()

        for part in parts:
            if part.error is not None and not part.has(end):
                release()
                raise part.error
        metrics = self._fetcher.metrics
        if began_s is not None:
            metrics.cache_misses.inc()
            metrics.stall_seconds.inc(time.perf_counter() - began_s)
            with self._lock:
                window.waited(self._fetcher.in_flight)
        else:
            metrics.cache_hits.inc()
        views = []
        for part in parts:
            assert part.buffer is not None
            low, high = max(offset, part.start), min(end, part.end)
            views.append(memoryview(part.buffer)[low - part.start : high - part.start])
        return ReadResult(views, release)
