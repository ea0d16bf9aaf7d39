"""Who may change what is below a directory while the directory gets another name.

The keys of everything below it change with it. Whoever is about to ask the store for a
change of a key therefore says of which inode, and waits while a directory above is moved; a
move waits for those that began before. Nobody else waits.

Locks are taken in this order: a subtree's, then a file inode's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.mounter.filesystem.inodes import Directory, Inode


class SubtreeLocks:
    """The changes and moves under way in one mount. Safe to use from any thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._moving: list[Directory] = []
        self._changing: list[tuple[Inode, ...]] = []
        self._mine = threading.local()

    @contextmanager
    def shared(self, *inodes: Inode) -> Iterator[None]:
        """A block that changes keys of these inodes, or below them, in the store.

        Inside another such block of the same thread it means nothing: that one covers it.
        """
        if getattr(self._mine, "inside", False):
            yield
            return
        with self._condition:
            self._condition.wait_for(lambda: not self._is_moving(inodes))
            self._changing.append(inodes)
        self._mine.inside = True
        try:
            yield
        finally:
            self._mine.inside = False
            with self._condition:
                self._changing.remove(inodes)
                self._condition.notify_all()

    @contextmanager
    def exclusive(self, directory: Directory, *parents: Directory) -> Iterator[None]:
        """A block that gives a directory another name.

        Args:
            parents: where it is and where it goes.
        """
        with self._condition:
            self._condition.wait_for(
                lambda: (
                    not self._is_moving((directory, *parents))
                    and not any(is_at_or_below(other, directory) for other in self._moving)
                )
            )
            self._moving.append(directory)  # first, so that no new change keeps this one waiting
            self._changing.append(parents)
            self._condition.wait_for(lambda: not self._is_changing(directory))
        self._mine.inside = True
        try:
            yield
        finally:
            self._mine.inside = False
            with self._condition:
                self._moving.remove(directory)
                self._changing.remove(parents)
                self._condition.notify_all()

    def _is_moving(self, inodes: tuple[Inode, ...]) -> bool:
        return any(is_at_or_below(inode, moved) for moved in self._moving for inode in inodes)

    def _is_changing(self, directory: Directory) -> bool:
        return any(
            is_at_or_below(inode, directory) for inodes in self._changing for inode in inodes
        )


def is_at_or_below(inode: Inode, directory: Directory) -> bool:
    """Whether an inode is the directory, or has it above itself."""
    here: Inode | None = inode
    while here is not None:
        if here is directory:
            return True
        here = here.parent
    return False
