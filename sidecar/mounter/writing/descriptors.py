"""Open descriptors of spool files, by name. Few of them stay open unused."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

MOST_UNUSED = 256
"""Descriptors that stay open although nobody uses them now."""


class DescriptorCache:
    """Descriptors by name: open while somebody uses them, and for a while afterwards.

    Safe to use from any thread.

    Args:
        open_file: opens a file for reading and writing.
    """

    def __init__(self, open_file: Callable[[str], int]) -> None:
        self._open_file = open_file
        self._lock = threading.Lock()
        self._used: dict[str, list[int]] = {}  # descriptor, number of users
        self._unused: OrderedDict[str, int] = OrderedDict()  # least recently used first

    def using(self, name: str, *more: str) -> _Use:
        """A block with a file's descriptor, for reading and writing. Raises as :meth:`acquire`.

        The descriptors of ``more`` files stay open, too (:meth:`held`).
        """
        return _Use(self, name, more)

    def held(self, name: str) -> int:
        """The descriptor of a file that somebody uses."""
        return self._used[name][0]

    def acquire(self, name: str) -> int:
        """A descriptor that stays open until :meth:`release`. Raises OSError, StateUnusable."""
        with self._lock:
            used = self._used.get(name)
            if used is None:
                descriptor = self._unused.pop(name, None)
                if descriptor is None:
                    descriptor = self._open_file(name)
                used = self._used[name] = [descriptor, 0]
            used[1] += 1
            return used[0]

    def release(self, name: str) -> None:
        """Count one user less."""
        with self._lock:
            used = self._used[name]
            used[1] -= 1
            if not used[1]:
                del self._used[name]
                self._unused[name] = used[0]
                if len(self._unused) > MOST_UNUSED:
                    os.close(self._unused.popitem(last=False)[1])

    def forget(self, name: str) -> None:
        """Close the descriptor of a file that is about to be deleted and that nobody uses."""
        with self._lock:
            descriptor = self._unused.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)


class _Use:
    """A context manager without a generator, which would make each write(2) a tenth longer."""

    __slots__ = ("_cache", "_more", "_name")

    def __init__(self, cache: DescriptorCache, name: str, more: tuple[str, ...]) -> None:
        self._cache = cache
        self._name = name
        self._more = more

    def __enter__(self) -> int:
        for count, name in enumerate(self._more):
            try:
                self._cache.acquire(name)
            except BaseException:
                self._more = self._more[:count]
                self._release_more()
                raise
        try:
            return self._cache.acquire(self._name)
        except BaseException:
            self._release_more()
            raise

    def __exit__(self, *_: object) -> None:
        self._cache.release(self._name)
        self._release_more()

    def _release_more(self) -> None:
        for name in self._more:
            self._cache.release(name)
