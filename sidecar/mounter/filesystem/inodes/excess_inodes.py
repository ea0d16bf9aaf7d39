"""Inodes that the kernel is asked to forget, because it holds too many without need.

The kernel keeps one for each name that was looked up, until it is short of memory itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sidecar.mounter.filesystem.inodes.inode import File, Inode, Link
from sidecar.mounter.filesystem.inodes.inode_table import InodeTable

INODE_BYTES = 700
"""The memory of an inode, with its name and version."""
_FORGOTTEN_TOGETHER = 256
_MOST_TOGETHER = 1024


class ExcessInodes:
    """The excess inodes of one mount. Its methods are called with the table's lock held.

    Attributes:
        forget: asks the kernel to forget inodes. It does so later, by :meth:`InodeTable.forget`.
    """

    def __init__(self, inodes: InodeTable) -> None:
        self.forget: Callable[[Sequence[Inode]], None] = _ignore
        self._inodes = inodes
        self._added = 0
        self._sweep: Iterator[Inode] = iter(())  # from the oldest to the newest, again and again
        inodes.on_excess = self._on_excess

    def reduce(self, most: int) -> None:
        """Have some unused inodes forgotten, if there are more than ``most``.

        If there are very many more, it must be called again.
        """
        excess = len(self._inodes) - most
        if excess > 0:
            self.forget(self._idle(min(excess, _MOST_TOGETHER)))

    def _on_excess(self) -> None:
        self._added += 1
        if self._added >= _FORGOTTEN_TOGETHER // 2:
            self._added = 0
            self.forget(self._idle(_FORGOTTEN_TOGETHER))

    def _idle(self, count: int) -> list[Inode]:
        """Up to ``count`` files and links that nobody has open; unread ones come first.

        Looks at four times as many, and goes on after them the next time. Directories stay: a
        program may be in one, or have something mounted there.
        """
        may_have_pages = len(self._inodes) > 2 * self._inodes.most
        idle: list[Inode] = []
        for _ in range(4 * count):
            inode = next(self._sweep, None)
            if inode is None:
                self._sweep = iter(self._inodes)
                continue
            if isinstance(inode, File):
                if inode.handles or inode.is_local or (inode.was_read and not may_have_pages):
                    continue
            elif not isinstance(inode, Link):
                continue
            if inode.lookups and not inode.detached:
                idle.append(inode)
                if len(idle) == count:
                    break
        return idle


def _ignore(_inodes: Sequence[Inode]) -> None:
    """Do nothing: there is nobody who could ask the kernel."""
