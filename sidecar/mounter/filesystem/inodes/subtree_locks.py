"""Locks that keep a directory's rename apart from every other change of keys below it.

A rename changes all keys below the directory. A thread that changes a key takes the lock of its
inode shared; a rename takes that of its directory exclusively. Nothing else ever waits for either.

A subtree's lock is taken before a file inode's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.mounter.filesystem.inodes.inode import Directory, Inode


class SubtreeLocks:
    """The subtree locks of one mount. Safe to use from any thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._exclusive: list[Directory] = []
        self._shared: list[tuple[Inode, ...]] = []
        self._thread = threading.local()

    @contextmanager
    def shared(self, *inodes: Inode) -> Iterator[None]:
        """Hold while keys of these inodes, or below them, change in the store.

        Does nothing if the thread holds a lock already, which covers this one.
        """
        if getattr(self._thread, "holds", False):
            yield
            return
        with self._condition:
            self._condition.wait_for(lambda: not self._is_below_exclusive(inodes))
            self._shared.append(inodes)
        self._thread.holds = True
        try:
            yield
        finally:
            self._thread.holds = False
            with self._condition:
                self._shared.remove(inodes)
                self._condition.notify_all()

    @contextmanager
    def exclusive(self, directory: Directory, *parents: Directory) -> Iterator[None]:
        """Hold while a directory is renamed.

        Args:
            parents: the directories that it is in before and after; they are held shared.
        """
        with self._condition:
            self._condition.wait_for(
                lambda: (
                    not self._is_below_exclusive((directory, *parents))
                    and not any(is_at_or_below(other, directory) for other in self._exclusive)
                )
            )
            # First, so that no new change below delays this one.
            self._exclusive.append(directory)
            self._shared.append(parents)
            self._condition.wait_for(lambda: not self._has_shared_below(directory))
        self._thread.holds = True
        try:
            yield
        finally:
            self._thread.holds = False
            with self._condition:
                self._exclusive.remove(directory)
                self._shared.remove(parents)
                self._condition.notify_all()

    def _is_below_exclusive(self, inodes: tuple[Inode, ...]) -> bool:
        return any(is_at_or_below(inode, held) for held in self._exclusive for inode in inodes)

    def _has_shared_below(self, directory: Directory) -> bool:
        return any(is_at_or_below(inode, directory) for held in self._shared for inode in held)


def is_at_or_below(inode: Inode, directory: Directory) -> bool:
    """Whether an inode is the directory or lies below it."""
    here: Inode | None = inode
    while here is not None:
        if here is directory:
            return True
        here = here.parent
    return False
