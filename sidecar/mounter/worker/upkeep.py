"""What a worker does once a second while it serves, and the regular save of dirty files.

No request waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from sidecar import logs
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.store.failures import Failures
from sidecar.mounter.system.memory_pressure import MemoryPressure

log = logging.getLogger("sidecar.worker")

_TICK_S: Final = 1.0


class Upkeep:
    """The regular work of one worker, in a thread of its own.

    Args:
        buffers: the worker's own.
        cache: the worker's own, if there is a disk cache.
        sync_interval_s: how often files that stay open are saved.
        write_read_log: writes down what programs have read, if there is something new.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        buffers: BufferPool,
        cache: DiskCache | None,
        metrics: VolumeMetrics,
        failures: Failures,
        sync_interval_s: float,
        write_read_log: Callable[[], None],
    ) -> None:
        self._filesystem = filesystem
        self._buffers = buffers
        self._cache = cache
        self._pressure = MemoryPressure()
        self._metrics = metrics
        self._failures = failures
        self._sync_interval_s = sync_interval_s
        self._write_read_log = write_read_log
        self._logged: dict[str, str] = {}  # key to the code of the error

    def run(self, leaving: threading.Event) -> None:
        """Work until ``leaving``."""
        next_sync_s = time.monotonic() + self._sync_interval_s
        while not leaving.wait(_TICK_S):
            self._filesystem.files.update_gauges()
            self._filesystem.files.let_go_of_contested()
            self._filesystem.files.write_back.resolve_versions()
            self._filesystem.files.write_back.save_attributes()
            self._failures.tick()
            self._write_read_log()
            self._mind_memory()
            self._filesystem.namespace.directory_cache.drop_expired()
            if self._cache is not None:
                self._metrics.cache_used_bytes.set(self._cache.used_bytes)
            if time.monotonic() >= next_sync_s:
                next_sync_s = time.monotonic() + self._sync_interval_s
                self._sync(next_sync_s)
                self._buffers.drop_unused()

    def _mind_memory(self) -> None:
        """Use less of the budgets while the container is near its memory limit."""
        before, is_news = self._pressure.part, self._pressure.look()
        part = self._pressure.part
        if part < 1:  # forget names, which come again with each listing
            namespace = self._filesystem.namespace
            namespace.shrink(int(part * namespace.directory_cache.memory.budget_bytes))
        if part < 1 or is_news:
            self._filesystem.files.contents.shrink_memory(part)
        if not is_news:
            return
        self._buffers.shrink(part)
        self._metrics.memory_budget_ratio.set(part)
        if before == 1:
            logs.event(log, "memory is short, windows and caches shrink", logging.WARNING)
        elif part == 1:
            logs.event(log, "there is memory again")

    def _sync(self, until_s: float) -> None:
        """Save what is dirty, and log each new failure once."""
        unsaved = self._filesystem.sync(until_s)
        # Without an error the upload of a large file is in progress, which is no news.
        failed = {key: error for key, error in unsaved.items() if error is not None}
        for key, error in failed.items():
            if self._logged.get(key) != error.code:
                logs.event(log, "not saved yet", logging.WARNING, key=key, error=error)
        self._logged = {key: error.code for key, error in failed.items()}
