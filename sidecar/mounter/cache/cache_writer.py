"""Stores fetched ranges in the disk cache in the background: one thread and a short queue."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from sidecar.mounter.cache.cache_entry import CacheEntry
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.units import MIB

log = logging.getLogger(__name__)

_MOST_QUEUED_BYTES = 64 * MIB


class _QueuedRange(NamedTuple):
    """Arguments of :meth:`CacheWriter.store_later`."""

    cache: DiskCache
    info: ObjectInfo
    entry: CacheEntry | None
    start: int
    data: memoryview
    release: Callable[[], None]


class CacheWriter:
    """The queue and its thread, which starts with the first range. Safe to use from threads."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_QueuedRange] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def store_later(
        self,
        cache: DiskCache,
        info: ObjectInfo,
        entry: CacheEntry | None,
        start: int,
        data: memoryview,
        release: Callable[[], None],
    ) -> None:
        """Store ``data`` of a version in the cache, from ``start``: at once if the queue is full.

        If it is full, the disk is slower than the store, and the caller waits for the disk. A cache
        that kept only a part would make the next pod fetch the rest again.

        Args:
            entry: the version's entry, acquired by the caller; None for a small object.
            release: called when ``data`` is no longer needed, whether it was stored or not.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cache", daemon=True)
                self._thread.start()
            fits = self._queued_bytes + len(data) <= _MOST_QUEUED_BYTES
            if fits:
                self._queued_bytes += len(data)
        if entry is not None:
            cache.retain(entry)
        queued = _QueuedRange(cache, info, entry, start, data, release)
        if fits:
            self._queue.put(queued)
        else:
            self._write(queued)

    def _run(self) -> None:
        while True:
            queued = self._queue.get()
            try:
                self._write(queued)
            finally:
                with self._lock:
                    self._queued_bytes -= len(queued.data)

    def _write(self, queued: _QueuedRange) -> None:
        cache, info, entry, start, data, release = queued
        try:
            if entry is None:
                cache.store_small(info, data)
            else:
                self._store(entry, start, data)
        finally:
            release()
            if entry is not None:
                cache.release(entry)

    def _store(self, entry: CacheEntry, start: int, data: memoryview) -> None:
        try:
            entry.store(start, data)
        except OSError as error:
            # A full disk, for example. Only speed is lost.
            log.warning("a range was not cached: %s", error)
            with contextlib.suppress(OSError):
                entry.unclaim(start, start + len(data))
