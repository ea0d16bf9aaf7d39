"""Bytes of one version of an object: from a cache that has them, else from the store.

Chooses no ranges, and keeps nothing of what it fetched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.errors import NotFound, Stale, StoreProtocolError
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.cache.cache_entry import CacheEntry
from sidecar.mounter.cache.cache_writer import CacheWriter
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.cache.near_bucket import NearBucket
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.reading.read_around import PageCacheShare
from sidecar.mounter.store.in_flight import InFlight
from sidecar.mounter.store.interface import Arrived, ObjectInfo, Store
from sidecar.units import MIB

log = logging.getLogger(__name__)

WHOLE_OBJECT_BYTES = 1 * MIB
"""Objects up to this size are small: they are fetched and cached whole."""
MOST_LOADING = 8
_LEASE_POLL_S = 0.002
"""How often a block is looked for that another process is fetching."""


class BufferUsers(Protocol):
    """Counts the users of one buffer, which goes back to its pool after the last."""

    def hold(self) -> None:
        """Count one user more."""

    def drop(self) -> None:
        """Count one user less."""


class _NotPooled:
    """For a buffer of no pool: Python frees it with the last reference."""

    def hold(self) -> None:
        """Nothing to count."""

    def drop(self) -> None:
        """Nothing to count."""


NOT_POOLED = _NotPooled()


LoadsWhole = Callable[[ObjectInfo], bool]


def never_whole(_info: ObjectInfo) -> bool:
    """No object is known to be loaded whole."""
    return False


@dataclass(frozen=True, slots=True)
class Fetcher:
    """What all handles of one mount share in one process.

    Attributes:
        threads: fetch parts: :data:`.in_flight.MOST`, so that none waits for a thread.
        part_bytes: largest part.
        in_flight: the parts that are fetched.
        cache: objects on local disk; None without a disk cache.
        cache_writer: stores in ``cache`` what was fetched.
        near: a bucket that is asked before the store; None without one.
        page_cache: room in the kernel's page cache for what nobody has asked for.
        loads_whole: whether programs load an object whole.
        loading: bounds the threads that do so, of all objects.
    """

    store: Store
    threads: ThreadPoolExecutor
    buffers: BufferPool
    metrics: VolumeMetrics
    part_bytes: int
    cache: DiskCache | None = None
    cache_writer: CacheWriter = field(default_factory=CacheWriter)
    near: NearBucket | None = None
    page_cache: PageCacheShare = field(default_factory=lambda: PageCacheShare(0))
    loads_whole: LoadsWhole = never_whole
    loading: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MOST_LOADING)
    )
    in_flight: InFlight = field(init=False)

    def __post_init__(self) -> None:
        room_bytes = self.buffers.budget_bytes * 3 // 4  # some wait until they are read
        tell = self.metrics.parts_fetched_at_once.set
        object.__setattr__(self, "in_flight", InFlight(self.part_bytes, room_bytes, tell=tell))

    def fetch(
        self,
        info: ObjectInfo,
        entry: CacheEntry | None,
        offset: int,
        buffer: memoryview,
        users: BufferUsers,
        arrived: Arrived | None = None,
    ) -> None:
        """Fill ``buffer`` from ``offset`` of exactly this version.

        Bytes that the disk cache has come from there. The others are stored there in the
        background, with the buffer held by ``users`` meanwhile. If the cache fails, the store
        is asked for everything.

        Args:
            entry: the version's in the cache, acquired by the caller. None: it has none, or is
                small.
            arrived: told how much of ``buffer`` is there, where that is known before the end.

        Raises:
            Stale: the version is gone, whether replaced or deleted.
            StoreError: as :meth:`.Store.get_range`.
        """
        if entry is not None and self.cache is not None:
            try:
                self._fetch_through(self.cache, info, entry, offset, buffer, users)
            except OSError as error:
                log.warning("the disk cache failed, the store is asked: %s", error)
            else:
                return
        if not self.fetch_directly(info, offset, buffer, arrived) or self.cache is None:
            return
        users.hold()
        self.cache_writer.store_later(self.cache, info, None, 0, buffer, users.drop)

    def fetch_directly(
        self, info: ObjectInfo, offset: int, buffer: memoryview, arrived: Arrived | None = None
    ) -> bool:
        """As :meth:`fetch`, without an entry. In the disk cache only small objects are looked for.

        Keeps nothing: returns whether ``buffer`` is a small object that should be kept.
        """
        cache = self.cache if info.size_bytes <= WHOLE_OBJECT_BYTES else None
        if cache is not None and cache.read_small(info, offset, buffer):
            self.metrics.disk_hit_bytes.inc(len(buffer))
            return False
        self.get(info, offset, buffer, arrived)
        return cache is not None and len(buffer) == info.size_bytes

    def keep_small(self, info: ObjectInfo, content: memoryview) -> None:
        """Store a small object in the disk cache, as :meth:`fetch_directly` said."""
        if self.cache is not None:
            self.cache.store_small(info, content)

    def _fetch_through(
        self,
        cache: DiskCache,
        info: ObjectInfo,
        entry: CacheEntry,
        offset: int,
        buffer: memoryview,
        users: BufferUsers,
    ) -> None:
        position, end = offset, offset + len(buffer)
        while position < end:
            run = entry.claim(position, end)
            view = buffer[position - offset : run.end - offset]
            if run.state == "valid":
                count = entry.read(position, view)
                self.metrics.disk_hit_bytes.inc(count)
                position += count
            elif run.state == "leased":
                time.sleep(_LEASE_POLL_S)
            else:
                try:
                    self.get(info, position, view)
                except BaseException:
                    entry.unclaim(position, run.end)
                    raise
                users.hold()
                self.cache_writer.store_later(cache, info, entry, position, view, users.drop)
                position = run.end

    def get(
        self, info: ObjectInfo, offset: int, buffer: memoryview, arrived: Arrived | None = None
    ) -> None:
        """Fill ``buffer`` from near bucket and store. The version must have all of the range.

        Raises:
            Stale: the version is gone, whether replaced or deleted.
            StoreError: as :meth:`.Store.get_range`.
        """
        if self.near is None:
            self._get_from_store(info, offset, buffer, arrived)
        else:
            self.near.fill(info, offset, buffer, self._get_from_store)

    def _get_from_store(
        self, info: ObjectInfo, offset: int, buffer: memoryview, arrived: Arrived | None = None
    ) -> None:
        """As :meth:`get`, without the near bucket."""
        try:
            count = self.store.get_range(info.key, info.version, offset, buffer, arrived)
        except NotFound as error:
            raise Stale(f"{error.what} was deleted while it was open") from error
        if not count:
            # A server may check the range before the condition, and answer 416.
            raise Stale(f"`{info.key}` is shorter by now: it was replaced while it was open")
        if count != len(buffer):
            raise StoreProtocolError(f"`{info.key}` ended {len(buffer) - count} bytes early")
        self.metrics.fetched_bytes.inc(count)
