"""System calls and C library functions that :mod:`os` lacks, with their usual names.

They raise OSError, as :mod:`os` does.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
SYNC_FILE_RANGE_ALL = 7
UTIME_OMIT = (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Dirent(ctypes.Structure):
    """struct dirent64, see readdir(3)."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


def _check(result: int) -> None:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def renameat2(old: Path, new: Path, flags: int) -> None:
    """rename(2) with flags."""
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); posix_fallocate(3) would write zeros if the kernel refuses."""
    _check(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def sync_file_range(fd: int, offset: int, length: int) -> None:
    """sync_file_range(2) with both WAIT flags."""
    arguments = ctypes.c_long(offset), ctypes.c_long(length)
    _check(_libc.sync_file_range(fd, *arguments, SYNC_FILE_RANGE_ALL))


def set_access_time(path: Path, seconds: int) -> None:
    """utimensat(2) of the access time only."""
    times = (_Timespec * 2)(_Timespec(seconds, 0), _Timespec(0, UTIME_OMIT))
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0))


class Line(NamedTuple):
    """One entry of readdir(3)."""

    name: str
    ino: int


class DirectoryStream:
    """DIR of the C library."""

    def __init__(self, path: Path) -> None:
        pointer = _libc.opendir(os.fsencode(path))
        if not pointer:
            _check(-1)
        self._pointer = ctypes.c_void_p(pointer)

    def read(self) -> Line | None:
        """readdir(3): the next entry, None at the end."""
        ctypes.set_errno(0)
        pointer = _libc.readdir64(self._pointer)
        if not pointer:
            if ctypes.get_errno():
                _check(-1)
            return None
        # The record may be shorter than the structure with its 256 bytes of name.
        offset = _Dirent.name.offset
        name = ctypes.string_at(pointer + offset)
        return Line(os.fsdecode(name), ctypes.c_uint64.from_address(pointer).value)

    def names(self) -> list[str]:
        """The remaining names, without ``.`` and ``..``."""
        found = []
        while (line := self.read()) is not None:
            if line.name not in (".", ".."):
                found.append(line.name)
        return found

    def rewind(self) -> None:
        """rewinddir(3)."""
        _libc.rewinddir(self._pointer)

    def tell(self) -> int:
        """telldir(3)."""
        return int(_libc.telldir(self._pointer))

    def seek(self, position: int) -> None:
        """seekdir(3)."""
        _libc.seekdir(self._pointer, ctypes.c_long(position))

    def close(self) -> None:
        """closedir(3)."""
        _check(_libc.closedir(self._pointer))


@contextmanager
def reading(path: Path) -> Iterator[DirectoryStream]:
    """opendir(3), and closedir(3) at the end."""
    stream = DirectoryStream(path)
    try:
        yield stream
    finally:
        stream.close()
