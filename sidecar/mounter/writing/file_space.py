"""The space that a file takes on its disk or in memory: its blocks and its holes."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

_STAT_BLOCK_BYTES = 512
# include/uapi/linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)


def taken_bytes(fd: int) -> int:
    """The size of its blocks, which is right on a copy-on-write file system and a full disk."""
    return os.fstat(fd).st_blocks * _STAT_BLOCK_BYTES


def holes_in(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of a file that take no space; lseek(2) with SEEK_HOLE and SEEK_DATA."""
    position = 0
    while position < size_bytes:
        start = os.lseek(fd, position, os.SEEK_HOLE)
        if start >= size_bytes:
            return
        position = next_data(fd, start, size_bytes)
        yield start, position


def next_data(fd: int, position: int, end: int) -> int:
    """The first byte from ``position`` on that takes space; ``end`` if there is none."""
    try:
        return min(end, os.lseek(fd, position, os.SEEK_DATA))
    except OSError as error:
        if error.errno != errno.ENXIO:  # that is: no data after it
            raise
        return end


def punch(fd: int, offset: int, size_bytes: int) -> bool:
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE; False if the file system cannot do that."""
    how = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc.fallocate(fd, how, ctypes.c_int64(offset), ctypes.c_int64(size_bytes)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code))
