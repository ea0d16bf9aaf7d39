"""Passthrough: the kernel serves a file's reads from a local copy, without asking anybody.

Rules of fs/fuse/passthrough.c and iomode.c (Linux 6.9): the backing file is registered by
ioctl and needs CAP_SYS_ADMIN; while a file is open in one way, ordinary or passthrough, an
open in the other way fails with EIO, so the way is decided per inode and counted; all
concurrent opens of an inode share one backing file. Used on read-only volumes alone, where
nothing can change the file that is open.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable, Iterable

from sidecar.mounter.cache.disk_cache import LocalCopy
from sidecar.mounter.fuse import protocol as p

log = logging.getLogger(__name__)

ORDINARY = 0
"""The backing id of an open that is served by requests."""


class Backings:
    """Backing files of one connection. Used by the thread that reads requests alone.

    Args:
        descriptor: the open /dev/fuse.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._copies: dict[int, LocalCopy] = {}  # inode -> what stays while it is open
        self._refused = False
        self._ids: dict[int, int] = {}  # inode -> backing id
        self._opens: dict[int, int] = {}  # inode -> opens, all of one way

    def restore(self, opens: Iterable[tuple[int, int]]) -> None:
        """Take over a predecessor's opens: (inode, backing id) of each handle."""
        for inode, backing_id in opens:
            self._opens[inode] = self._opens.get(inode, 0) + 1
            if backing_id != ORDINARY:
                self._ids[inode] = backing_id

    @property
    def in_use(self) -> bool:
        """Whether any file is open, in whichever way."""
        return bool(self._opens)

    def acquire(self, inode: int, open_copy: Callable[[], LocalCopy | None]) -> int:
        """Count one open of an inode; its backing id, or ORDINARY."""
        opens = self._opens.get(inode, 0)
        copy = open_copy() if not opens and not self._refused else None
        self._opens[inode] = opens + 1
        if copy is None:
            return self._ids.get(inode, ORDINARY)
        try:
            request = bytearray(p.BACKING_MAP.pack(copy.descriptor, 0, 0))
            backing_id: int = fcntl.ioctl(self._descriptor, p.BACKING_OPEN, request)
        except OSError as error:
            # No privilege, or a file system that cannot back: it stays so, ask no more.
            log.info("passthrough is refused here: %s", error)
            self._refused = True
            copy.close()
            return ORDINARY
        self._copies[inode] = copy
        self._ids[inode] = backing_id
        return backing_id

    def release(self, inode: int) -> None:
        """One open of an inode less; the last one gives the backing file back."""
        opens = self._opens.pop(inode, 1) - 1
        if opens:
            self._opens[inode] = opens
        elif (backing_id := self._ids.pop(inode, ORDINARY)) != ORDINARY:
            fcntl.ioctl(self._descriptor, p.BACKING_CLOSE, backing_id.to_bytes(4, "little"))
            copy = self._copies.pop(inode, None)
            if copy is not None:
                copy.close()
