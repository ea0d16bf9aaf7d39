"""The read windows of one open file: how far ahead of the reader the store is asked.

A handle starts with nothing. Reads that follow each other become a stream with a window of
parts that are fetched at the same time by several connections; the window doubles only
when the reader had to wait, so a slow reader costs little and a fast one gets bandwidth.
Reads that follow nothing are fetched as they are, in the caller's thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from sidecar.errors import NotFound, Stale, StoreProtocolError, WouldBlock
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.buffers import BufferPool
from sidecar.mounter.cache import BLOCK_BYTES, DiskCache, Entry, Keeper
from sidecar.mounter.store.base import ObjectInfo, Store

MIB = 1024 * 1024

WHOLE_OBJECT_BYTES = 1 * MIB
"""Objects up to this size are fetched whole at the first read."""
FIRST_PART_BYTES = 1 * MIB
SEEK_FORWARD_BYTES = 16 * MIB
"""A read so little ahead of a window belongs to it (skipping in a record file)."""
KEEP_BEHIND_BYTES = 4 * MIB
"""Kept behind the reader: the kernel's readahead asks out of order, and readers step back."""
MAX_WINDOW_BYTES = 64 * MIB
MAX_STREAMS = 4
"""Interleaved streams of one handle, such as the columns of a table."""
_REMEMBERED_ENDS = 8
_LEASE_POLL_S = 0.002


class Fetcher(NamedTuple):
    """What all handles of one mount share.

    Attributes:
        threads: fetch parts; their number bounds the connections that read ahead.
        part_bytes: largest part.
        cache: objects on local disk; None without a disk cache.
    """

    store: Store
    threads: ThreadPoolExecutor
    buffers: BufferPool
    metrics: VolumeMetrics
    part_bytes: int
    cache: DiskCache | None = None
    keeper: Keeper = Keeper()

    def fetch(
        self,
        info: ObjectInfo,
        entry: Entry | None,
        offset: int,
        buffer: memoryview,
        users: _Users,
    ) -> None:
        """Fill ``buffer`` from ``offset`` of exactly this version.

        From the disk cache where it has the bytes; what it has not is kept there, the
        buffer held by ``users`` as long as that takes. Raises Stale where the version is
        gone, whether replaced or deleted.
        """
        if entry is None:
            self._get(info, offset, buffer)
            return
        position, end = offset, offset + len(buffer)
        while position < end:
            run = entry.run(position, end)
            view = buffer[position - offset : run.end - offset]
            if run.state == "valid":
                count = entry.read(position, view)
                self.metrics.disk_hit_bytes.inc(count)
                position += count
            elif run.state == "leased":
                time.sleep(_LEASE_POLL_S)  # another process is fetching it
            else:
                entry.lease(position, run.end)
                try:
                    self._get(info, position, view)
                except BaseException:
                    entry.release(position, run.end)
                    raise
                users.hold()
                self.keeper.keep(entry, position, view, users.drop)
                position = run.end

    def _get(self, info: ObjectInfo, offset: int, buffer: memoryview) -> None:
        try:
            count = self.store.get_range(info.key, info.version, offset, buffer)
        except NotFound as error:
            raise Stale(f"{error.what} was deleted while it was open") from error
        if count != len(buffer):
            raise StoreProtocolError(f"`{info.key}` ended {len(buffer) - count} bytes early")
        self.metrics.fetched_bytes.inc(count)


class _Users(Protocol):
    """Counts who needs a buffer."""

    def hold(self) -> None: ...

    def drop(self) -> None: ...


class _Alone:
    """A buffer that belongs to nobody else and is freed with its last reference."""

    def hold(self) -> None:
        """Nothing to count."""

    def drop(self) -> None:
        """Nothing to count."""


class ReadResult(NamedTuple):
    """Bytes for one read. ``release`` must be called once they were copied or sent."""

    views: list[memoryview]
    release: Callable[[], None]


class _Part:
    """A range of the object in memory, or on its way there."""

    __slots__ = ("_users", "buffer", "done", "end", "error", "lock", "pool", "start")

    def __init__(self, start: int, buffer: bytearray, pool: BufferPool) -> None:
        self.start = start
        self.end = start + len(buffer)
        self.buffer: bytearray | None = buffer
        self.pool = pool
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._users = 1  # the window
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

    def fetch(self, fetcher: Fetcher, info: ObjectInfo, entry: Entry | None) -> None:
        try:
            assert self.buffer is not None
            fetcher.fetch(info, entry, self.start, memoryview(self.buffer), self)
        except BaseException as error:  # noqa: BLE001 - raised again in each reader's thread
            self.error = error
        finally:
            self.done.set()
            self.drop()


class _Stream:
    """One window: contiguous parts from ``parts[0].start`` to ``end``."""

    __slots__ = ("end", "next_part_bytes", "parts", "position", "window_bytes")

    def __init__(self, offset: int) -> None:
        self.parts: deque[_Part] = deque()
        self.position = offset
        self.end = offset
        self.window_bytes = FIRST_PART_BYTES
        self.next_part_bytes = FIRST_PART_BYTES

    @property
    def start(self) -> int:
        return self.parts[0].start if self.parts else self.end

    def close(self) -> None:
        while self.parts:
            self.parts.popleft().drop()


class ObjectReader:
    """Reads one version of one object. Safe to use from any thread.

    Args:
        info: the object's pinned version.
    """

    def __init__(self, fetcher: Fetcher, info: ObjectInfo) -> None:
        self.info = info
        self._fetcher = fetcher
        self._lock = threading.Lock()
        self._streams: list[_Stream] = []
        self._ends: deque[int] = deque(maxlen=_REMEMBERED_ENDS)
        self._closed = False
        self._entry = fetcher.cache.enter(info) if fetcher.cache is not None else None

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
            stream = self._find_stream(offset, end, wait)
            parts, missing = self._cover(stream, offset, end) if stream is not None else ([], None)
            if not parts and wait:
                self._ends.append(end)
        if stream is None or not parts:
            if not wait:
                raise WouldBlock(self.info.key)
            return self._read_directly(offset, end)
        if missing is not None:
            missing.fetch(self._fetcher, self.info, self._entry)
        return self._read_parts(stream, parts, offset, end, wait)

    def close(self) -> None:
        """Drop the windows. Parts on their way are dropped when they arrive."""
        with self._lock:
            self._closed = True
            for stream in self._streams:
                stream.close()
            self._streams.clear()
        if self._entry is not None and self._fetcher.cache is not None:
            self._fetcher.cache.leave(self._entry)

    # --- windows; the lock is held ---------------------------------------------------

    def _find_stream(self, offset: int, end: int, wait: bool) -> _Stream | None:
        """The window that a read belongs to; only who may wait begins or moves one."""
        if self._closed:
            return None
        for stream in self._streams:
            if stream.start <= offset < stream.end + SEEK_FORWARD_BYTES:
                if not wait and end > stream.end:
                    return None
                self._streams.remove(stream)
                self._streams.append(stream)  # most recently used last
                if offset > stream.end:
                    self._skip(stream, offset)
                return stream
        follows = offset == 0 or any(
            near <= offset <= near + FIRST_PART_BYTES for near in self._ends
        )
        if not (wait and follows):
            return None
        stream = _Stream(offset - offset % BLOCK_BYTES)
        if self.info.size_bytes <= WHOLE_OBJECT_BYTES:
            stream = _Stream(0)
            stream.next_part_bytes = self.info.size_bytes
        if len(self._streams) == MAX_STREAMS:
            self._streams.pop(0).close()
        self._streams.append(stream)
        return stream

    def _skip(self, stream: _Stream, offset: int) -> None:
        """Jump a little ahead: what lies between is not fetched."""
        stream.close()
        stream.end = stream.position = offset

    def _cover(self, stream: _Stream, offset: int, end: int) -> tuple[list[_Part], _Part | None]:
        """The parts that hold ``[offset, end)``, held; none beyond the budget.

        The first of them that nobody fetches yet is for the caller to fetch: it has to
        wait anyway, and a thread less is woken.
        """
        stream.position = max(stream.position, end)
        missing: _Part | None = None
        while stream.end < end:
            part = self._ask(stream)
            if part is None:
                return [], None
            if missing is None:
                missing = part
            else:
                self._submit(part)
        needed = [part for part in stream.parts if part.start < end and part.end > offset]
        for part in needed:
            part.hold()
        while stream.parts and stream.parts[0].end <= stream.position - KEEP_BEHIND_BYTES:
            stream.parts.popleft().drop()
        if self.info.size_bytes > WHOLE_OBJECT_BYTES:
            while stream.end - stream.position < stream.window_bytes:
                part = self._ask(stream)
                if part is None:
                    break
                self._submit(part)
        return needed, missing

    def _ask(self, stream: _Stream) -> _Part | None:
        """Append the next part; None at the end of the object or of the budget."""
        size = min(stream.next_part_bytes, self.info.size_bytes - stream.end)
        if size <= 0:
            return None
        buffer = self._fetcher.buffers.take(size)
        if buffer is None:
            return None
        part = _Part(stream.end, buffer, self._fetcher.buffers)
        part.hold()  # the fetch
        stream.parts.append(part)
        stream.end = part.end
        stream.next_part_bytes = min(stream.next_part_bytes * 2, self._fetcher.part_bytes)
        return part

    def _submit(self, part: _Part) -> None:
        self._fetcher.threads.submit(part.fetch, self._fetcher, self.info, self._entry)

    # --- reading; the lock is not held ------------------------------------------------

    def _read_directly(self, offset: int, end: int) -> ReadResult:
        first, last = offset, end
        if self._entry is not None:  # whole blocks, so that they can be kept
            first -= first % BLOCK_BYTES
            last = min(-(-last // BLOCK_BYTES) * BLOCK_BYTES, self.info.size_bytes)
        buffer = memoryview(bytearray(last - first))
        began_s = time.perf_counter()
        self._fetcher.fetch(self.info, self._entry, first, buffer, _Alone())
        metrics = self._fetcher.metrics
        metrics.stall_seconds.inc(time.perf_counter() - began_s)
        metrics.cache_misses.inc()
        return ReadResult([buffer[offset - first : end - first]], _nothing)

    def _read_parts(
        self, stream: _Stream, parts: list[_Part], offset: int, end: int, wait: bool
    ) -> ReadResult:
        def release() -> None:
            for part in parts:
                part.drop()

        waited = False
        for part in parts:
            if not part.done.is_set():
                if not wait:
                    release()
                    raise WouldBlock(self.info.key)
                waited = True
                began_s = time.perf_counter()
                part.done.wait()
                self._fetcher.metrics.stall_seconds.inc(time.perf_counter() - began_s)
            if part.error is not None:
                self._restart(stream)
                release()
                raise part.error
        (self._fetcher.metrics.cache_misses if waited else self._fetcher.metrics.cache_hits).inc()
        if waited:
            with self._lock:
                stream.window_bytes = min(stream.window_bytes * 2, MAX_WINDOW_BYTES)
        views = []
        for part in parts:
            assert part.buffer is not None
            low, high = max(offset, part.start), min(end, part.end)
            views.append(memoryview(part.buffer)[low - part.start : high - part.start])
        return ReadResult(views, release)

    def _restart(self, stream: _Stream) -> None:
        """Forget a window in which a fetch failed, so that the next read asks again."""
        with self._lock:
            if stream in self._streams:
                self._streams.remove(stream)
                stream.close()


def _nothing() -> None:
    """Nothing to release: the bytes belong to the result alone."""
