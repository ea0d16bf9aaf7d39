"""Bytes of one version of an object: from the disk cache where it has them, else from the store."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from sidecar.errors import NotFound, Stale, StoreProtocolError
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.cache.cache_entry import CacheEntry
from sidecar.mounter.cache.cache_writer import CacheWriter
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.reading.read_around import PageCacheShare
from sidecar.mounter.store.interface import ObjectInfo, Store

log = logging.getLogger(__name__)

_LEASE_POLL_S = 0.002


class Users(Protocol):
    """Counts who needs a buffer."""

    def hold(self) -> None:
        """One more."""

    def drop(self) -> None:
        """One less."""


class _Alone:
    """A buffer that belongs to nobody else and is freed with its last reference."""

    def hold(self) -> None:
        """Nothing to count."""

    def drop(self) -> None:
        """Nothing to count."""


ALONE = _Alone()


class Fetcher(NamedTuple):
    """What all handles of one mount share.

    Attributes:
        threads: fetch parts; their number bounds the connections that read ahead.
        part_bytes: largest part.
        cache: objects on local disk; None without a disk cache.
        page_cache: for what random reads bring beyond what they ask for.
    """

    store: Store
    threads: ThreadPoolExecutor
    buffers: BufferPool
    metrics: VolumeMetrics
    part_bytes: int
    cache: DiskCache | None = None
    cache_writer: CacheWriter = CacheWriter()
    page_cache: PageCacheShare = PageCacheShare(0)

    def fetch(
        self,
        info: ObjectInfo,
        entry: CacheEntry | None,
        offset: int,
        buffer: memoryview,
        users: Users,
    ) -> None:
        """Fill ``buffer`` from ``offset`` of exactly this version.

        From the disk cache where it has the bytes; what it has not is kept there, the
        buffer held by ``users`` as long as that takes. A cache that fails is not waited
        for. Raises Stale where the version is gone, whether replaced or deleted.
        """
        if entry is not None and self.cache is not None:
            try:
                self._fetch_through(self.cache, info, entry, offset, buffer, users)
            except OSError as error:
                log.warning("the disk cache failed, the store is asked: %s", error)
            else:
                return
        self.get(info, offset, buffer)
        if entry is None and self.cache is not None and len(buffer) == info.size_bytes:
            users.hold()
            self.cache_writer.store_later(self.cache, info, None, 0, buffer, users.drop)

    def _fetch_through(
        self,
        cache: DiskCache,
        info: ObjectInfo,
        entry: CacheEntry,
        offset: int,
        buffer: memoryview,
        users: Users,
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
                time.sleep(_LEASE_POLL_S)  # somebody else is fetching it
            else:
                try:
                    self.get(info, position, view)
                except BaseException:
                    entry.unclaim(position, run.end)
                    raise
                users.hold()
                self.cache_writer.store_later(cache, info, entry, position, view, users.drop)
                position = run.end

    def get(self, info: ObjectInfo, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from the store, with bytes that the version ``info`` has.

        Raises Stale where the version is gone, whether replaced or deleted.
        """
        try:
            count = self.store.get_range(info.key, info.version, offset, buffer)
        except NotFound as error:
            raise Stale(f"{error.what} was deleted while it was open") from error
        if not count:
            # A server may look at the range before it looks at the condition, and answer 416.
            raise Stale(f"`{info.key}` is shorter by now: it was replaced while it was open")
        if count != len(buffer):
            raise StoreProtocolError(f"`{info.key}` ended {len(buffer) - count} bytes early")
        self.metrics.fetched_bytes.inc(count)
