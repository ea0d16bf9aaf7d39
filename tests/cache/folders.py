"""Helpers for tests of the disk cache: objects of known content, and the folder's state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from sidecar.mounter.cache.cache_entry import CACHE_BLOCK_BYTES, CacheEntry
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.units import MIB

URL = "s3://bucket"


class Damage:
    """Counts what the cache reports."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def open_cache(
    folder: Path, budget_bytes: int = 64 * MIB, damage: Damage | None = None
) -> DiskCache:
    return DiskCache(folder, URL, budget_bytes, on_damage=damage or Damage())


def an_object(size_bytes: int, key: str = "key", version: str = "1") -> tuple[ObjectInfo, bytes]:
    """An object; its content follows from its name."""
    content = random.Random(f"{key}@{version}").randbytes(size_bytes)
    return ObjectInfo(key, size_bytes, 0.0, version), content


def acquire(cache: DiskCache, info: ObjectInfo) -> CacheEntry:
    entry = cache.acquire(info)
    assert entry is not None
    return entry


def keep(cache: DiskCache, info: ObjectInfo, content: bytes) -> Path:
    """Store a whole object; the data file."""
    entry = acquire(cache, info)
    entry.store(0, memoryview(content))
    cache.release(entry)
    return entry.path


def states(entry: CacheEntry) -> str:
    """One letter for each block: v(alid), l(eased), or ``-``. Takes no lease."""
    return "".join(
        {"valid": "v", "leased": "l"}.get(_peek(entry, index), "-")
        for index in range(-(-entry.size_bytes // CACHE_BLOCK_BYTES))
    )


def _peek(entry: CacheEntry, index: int) -> str:
    start = index * CACHE_BLOCK_BYTES
    end = min(start + CACHE_BLOCK_BYTES, entry.size_bytes)
    state = entry.claim(start, end).state
    if state == "missing":
        entry.unclaim(start, end)
    return state


def read(entry: CacheEntry, start: int, size: int) -> bytes:
    """The valid bytes at the start of a range."""
    buffer = memoryview(bytearray(size))
    return bytes(buffer[: entry.read(start, buffer)])


def has_whole(cache: DiskCache, info: ObjectInfo) -> bool:
    copy = cache.open_whole(info)
    if copy is None:
        return False
    copy.close()
    return True


def files(folder: Path) -> Iterator[Path]:
    """Every data and map file."""
    for below in folder.iterdir():
        if below.is_dir():
            yield from below.iterdir()


def disk_bytes(folder: Path) -> int:
    """Disk space of the files, some of which may be deleted meanwhile."""
    total = 0
    for path in files(folder):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total
