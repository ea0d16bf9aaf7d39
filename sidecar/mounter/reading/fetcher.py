"""Bytes of one version of an object: from a cache that has them, else from the store."""

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
"""How often to look for a block that another process is fetching."""


class BufferUsers(Protocol):
    """Counts the users of one buffer, which goes back to its pool after the last."""

    def hold(self) -> None:
        """Count one user more."""

    def drop(self) -> None:
        """Count one user less."""


class _NotPooled:
    """For a buffer outside any pool, which Python frees with its last reference."""

    def hold(self) -> None:
        """Nothing to count."""

    def drop(self) -> None:
        """Nothing to count."""


NOT_POOLED = _NotPooled()


LoadsWhole = Callable[[ObjectInfo], bool]


def never_whole(_info: ObjectInfo) -> bool:
    """No object is loaded whole."""
    return False


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches for all handles of one mount in one process.

    Attributes:
        threads: fetch parts; there are :data:`.in_flight.MOST`, so that no part waits for one.
        part_bytes: the largest part.
        in_flight: the parts that are being fetched.
        cache: objects on local disk; None without a disk cache.
        near: a bucket that is asked before the store; None without one.
        page_cache: room in the kernel's page cache for bytes that nobody has asked for.
        loads_whole: whether programs load an object whole.
        loading: bounds the threads that do so, for all objects together.
    """

    store: Store
    threads: ThreadPoolExecutor
    buffers: BufferPool
    metrics: VolumeMetrics
    part_bytes: int
    cache: DiskCache | None = None
    near: NearBucket | None = None
    page_cache: PageCacheShare = field(default_factory=lambda: PageCacheShare(0))
    loads_whole: LoadsWhole = never_whole
    loading: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MOST_LOADING)
    )
    in_flight: InFlight = field(init=False)

    def __post_init__(self) -> None:
        room_bytes = self.buffers.budget_bytes * 3 // 4  # the rest waits to be read
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

        Bytes come from the disk cache if it has them. Others are stored there in the background,
        and ``users`` holds the buffer meanwhile. If the cache fails, the store is asked for
        everything.

        Args:
            entry: the version's cache entry, acquired by the caller; None for a small object, or if
                there is none.
            arrived: called with the number of bytes in ``buffer``, if that is known before the end.

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
        self.cache.store_later(info, None, 0, buffer, users.drop)

    def fetch_directly(
        self, info: ObjectInfo, offset: int, buffer: memoryview, arrived: Arrived | None = None
    ) -> bool:
        """As :meth:`fetch`, without an entry: the disk cache is asked for small objects only.

        Stores nothing. Returns whether ``buffer`` is a small object that should be kept.
        """
        cache = self.cache if info.size_bytes <= WHOLE_OBJECT_BYTES else None
        if cache is not None and cache.read_small(info, offset, buffer):
            self.metrics.disk_hit_bytes.inc(len(buffer))
            return False
        self.get(info, offset, buffer, arrived)
        return cache is not None and len(buffer) == info.size_bytes

    def keep_small(self, info: ObjectInfo, content: memoryview) -> None:
        """Store a small object in the disk cache, after :meth:`fetch_directly` has said so."""
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
                cache.store_later(info, entry, position, view, users.drop)
                position = run.end

    def get(
        self, info: ObjectInfo, offset: int, buffer: memoryview, arrived: Arrived | None = None
    ) -> None:
        """Fill ``buffer`` from near bucket and store. The version must have the whole range.

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
            # A server may check the range before the condition, and answers 416 then.
            raise Stale(f"`{info.key}` is shorter by now: it was replaced while it was open")
        if count != len(buffer):
            raise StoreProtocolError(f"`{info.key}` ended {len(buffer) - count} bytes early")
        self.metrics.fetched_bytes.inc(count)
