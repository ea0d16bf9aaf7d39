"""Passthrough: the kernel reads a file from its local copy, and asks nobody.

The caller chooses the copy.

Rules of fs/fuse/passthrough.c and iomode.c (Linux 6.9): a backing file is registered by ioctl,
which needs CAP_SYS_ADMIN. While an inode is open with a backing file, an open without one fails
with EIO, and the reverse. So the first open decides for the inode, and opens are counted. All
concurrent opens of an inode share one backing file. Only read-only volumes use passthrough, since
nothing there can change an open file.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable, Iterable

from sidecar.mounter.cache.disk_cache import LocalCopy
from sidecar.mounter.fuse import protocol as p

log = logging.getLogger(__name__)


class BackingFiles:
    """The backing files of one connection. Used only by the thread that reads requests.

    A backing id of None means that READs of the file are requests.

    Args:
        descriptor: the open /dev/fuse.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._copies: dict[int, LocalCopy] = {}  # by inode; kept while it is open
        self._refused = False
        self._ids: dict[int, int] = {}  # backing ids by inode
        self._opens: dict[int, int] = {}  # number of opens, by inode

    def restore(self, opens: Iterable[tuple[int, int | None]]) -> None:
        """Take over a predecessor's opens: inode and backing id of each handle."""
        for inode, backing_id in opens:
            self._opens[inode] = self._opens.get(inode, 0) + 1
            if backing_id is not None:
                self._ids[inode] = backing_id

    @property
    def in_use(self) -> bool:
        """Whether any file is open, with a backing file or without."""
        return bool(self._opens)

    def acquire(self, inode: int, open_copy: Callable[[], LocalCopy | None]) -> int | None:
        """Count one open of an inode; its backing id.

        Args:
            open_copy: opens the local copy of the inode, or returns None if there is none.
        """
        opens = self._opens.get(inode, 0)
        copy = open_copy() if not opens and not self._refused else None
        self._opens[inode] = opens + 1
        if copy is None:
            return self._ids.get(inode)
        try:
            request = bytearray(p.BACKING_MAP.pack(copy.descriptor, 0, 0))
            backing_id: int = fcntl.ioctl(self._descriptor, p.BACKING_OPEN, request)
        except OSError as error:
            # The privilege is missing, or the file system cannot be used. That will not change.
            log.info("passthrough is refused here: %s", error)
            self._refused = True
            copy.close()
            return None
        self._copies[inode] = copy
        self._ids[inode] = backing_id
        return backing_id

    def release(self, inode: int) -> None:
        """Count one open less. The last one unregisters the backing file."""
        opens = self._opens.pop(inode, 1) - 1
        if opens:
            self._opens[inode] = opens
        elif (backing_id := self._ids.pop(inode, None)) is not None:
            fcntl.ioctl(self._descriptor, p.BACKING_CLOSE, backing_id.to_bytes(4, "little"))
            copy = self._copies.pop(inode, None)
            if copy is not None:
                copy.close()
