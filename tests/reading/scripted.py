"""A store that answers on command, and readers of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from sidecar.errors import SidecarError
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.reading.object_reader import ObjectReader, PageCache
from sidecar.mounter.reading.read_around import MOST_BYTES, PageCacheShare
from sidecar.mounter.store.interface import Arrived, ObjectInfo
from sidecar.units import MIB
from tests.support.memory_store import Hook, MemoryStore

THREADS = 16


class Gets:
    """A store's hook: GETs wait while the gate is closed, and fail while ``failure`` is set.

    Attributes:
        ranges: (offset, length) of each GET, in the order in which they were asked.
        under_way: GETs that wait at the gate.
        early_bytes: what arrives of a GET before it waits.
    """

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failure: SidecarError | None = None
        self.under_way = 0
        self.delay_s = 0.0
        self.early_bytes = 0
        self._counting = threading.Lock()

    def __call__(
        self,
        get_range: Hook,
        key: str,
        version: str | None,
        offset: int,
        buffer: memoryview,
        arrived: Arrived | None = None,
    ) -> int:
        with self._counting:
            self.ranges.append((offset, len(buffer)))
            self.under_way += 1
        if self.early_bytes and arrived is not None:
            early = min(self.early_bytes, len(buffer))
            get_range(key, version, offset, buffer[:early])
            arrived(early)
        self.gate.wait(60)
        time.sleep(self.delay_s)
        with self._counting:
            self.under_way -= 1
        if self.failure is not None:
            raise self.failure
        answer: int = get_range(key, version, offset, buffer, arrived)
        return answer

    @property
    def asked_bytes(self) -> int:
        return sum(size for _, size in self.ranges)


class Reading:
    """One object of known content and what readers share."""

    def __init__(
        self,
        metrics: VolumeMetrics,
        size_bytes: int,
        budget_bytes: int = 256 * MIB,
        page_cache_bytes: int = 0,
        loads_whole: bool = False,
    ) -> None:
        self.gets = Gets()
        self.store = MemoryStore(get=self.gets)
        unit = random.Random(1).randbytes(MIB + 13)  # A wrong offset gives other bytes.
        self.content = (unit * (size_bytes // len(unit) + 1))[:size_bytes]
        self.info: ObjectInfo = self.store.put("object", self.content)
        self.threads = ThreadPoolExecutor(THREADS)
        self.buffers = BufferPool(budget_bytes)
        self.fetcher = Fetcher(
            self.store,
            self.threads,
            self.buffers,
            metrics,
            8 * MIB,
            page_cache=PageCacheShare(page_cache_bytes),
            loads_whole=lambda _: loads_whole,
        )
        self.readers: list[ObjectReader] = []
        self.pages: list[tuple[int, int]] = []  # what the page cache was given, in order
        self._filling = threading.Lock()

    def open(self, *, surplus: bool = False) -> ObjectReader:
        blocks = range(-(-self.info.size_bytes // MOST_BYTES))
        region = range(self.info.size_bytes)
        page_cache = PageCache(blocks, region, self.filled) if surplus else None
        reader = ObjectReader(self.fetcher, self.info, page_cache=page_cache)
        self.readers.append(reader)
        return reader

    def filled(self, offset: int, view: memoryview) -> None:
        """Takes the place of the kernel's page cache."""
        assert view == self.content[offset : offset + len(view)]
        with self._filling:
            self.pages.append((offset, offset + len(view)))

    def read(self, reader: ObjectReader, offset: int, size: int) -> bytes:
        result = reader.read(offset, size)
        try:
            return b"".join(result.views)
        finally:
            result.release()

    def check(self, reader: ObjectReader, offset: int, size: int) -> None:
        """Read a range and compare its bytes."""
        assert self.read(reader, offset, size) == self.content[offset : offset + size]

    def settle(self) -> None:
        """Wait until no fetch is in flight."""
        everybody = threading.Barrier(THREADS + 1)
        for _ in range(THREADS):
            self.threads.submit(everybody.wait)
        everybody.wait(60)

    def end(self) -> None:
        self.gets.gate.set()
        for reader in self.readers:
            reader.close()
        self.threads.shutdown(wait=True)


def blocks(size: int, step: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of reads one after the other."""
    for offset in range(0, size, step):
        yield offset, min(step, size - offset)
