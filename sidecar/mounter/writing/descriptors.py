"""Open descriptors of spool files, few of which stay open unused. Knows paths, and no content."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

MOST_UNUSED = 256
"""Descriptors that stay open although nobody reads or writes their files right now."""


class DescriptorCache:
    """Descriptors by path: open while somebody uses them, and for a while afterwards.

    Safe to use from any thread.
    """

    def __init__(self, most_unused: int = MOST_UNUSED) -> None:
        self._most_unused = most_unused
        self._lock = threading.Lock()
        self._used: dict[Path, list[int]] = {}  # descriptor, number of users
        self._unused: OrderedDict[Path, int] = OrderedDict()  # least recently used first

    def using(self, path: Path) -> _Use:
        """A block with the descriptor of a file, for reading and writing. Raises OSError."""
        return _Use(self, path)

    def acquire(self, path: Path) -> int:
        """The descriptor, which stays open until :meth:`release`. Raises OSError."""
        with self._lock:
            used = self._used.get(path)
            if used is None:
                descriptor = self._unused.pop(path, None)
                if descriptor is None:
                    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                used = self._used[path] = [descriptor, 0]
            used[1] += 1
            return used[0]

    def release(self, path: Path) -> None:
        """One user less."""
        with self._lock:
            used = self._used[path]
            used[1] -= 1
            if not used[1]:
                del self._used[path]
                self._unused[path] = used[0]
                if len(self._unused) > self._most_unused:
                    os.close(self._unused.popitem(last=False)[1])

    def forget(self, path: Path) -> None:
        """Close it: the file is about to be deleted, and nobody uses it."""
        with self._lock:
            descriptor = self._unused.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)


class _Use:
    """No generator: each write(2) would take a tenth longer."""

    __slots__ = ("_cache", "_path")

    def __init__(self, cache: DescriptorCache, path: Path) -> None:
        self._cache = cache
        self._path = path

    def __enter__(self) -> int:
        return self._cache.acquire(self._path)

    def __exit__(self, *_: object) -> None:
        self._cache.release(self._path)
