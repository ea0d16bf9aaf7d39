"""Small objects in the disk cache: each is one file, with a checksum after its content.

A file needs no map, no lock and no lease. Everybody who stores an object writes the same bytes,
everybody who reads it compares all of them, and an open file stays whole when it is evicted.

System calls are few on purpose: during each call another thread runs, and waiting for the
interpreter again costs more than the call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable

from sidecar.mounter.cache.cache_entry import DiskBudget, on_disk
from sidecar.mounter.cache.cache_folder import (
    SMALL_SUFFIX,
    USE_STAMP_S,
    EntryGone,
    open_own_file,
)
from sidecar.units import MIB

log = logging.getLogger(__name__)

_MAGIC = b"mssmall1"
_END = struct.Struct("<8sI4x")  # magic, crc32 of the content
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE_ATTEMPTS = 5
_ROOM_DIVISOR = 1024
_MOST_ROOM_BYTES = MIB
"""The most room that a process takes in advance: 1/1024 of the budget, and no more than this."""


class SmallObjects:
    """The small objects of one cache folder, in one process. Safe to use from several threads.

    Args:
        open_subfolder: opens a subfolder of the folder, and makes it if it is missing.
        budget: gives the disk space. It is kept to within what is being written.
        budget_bytes: all of it.
        on_damage: called for each file that is not as it was written.

    Attributes:
        room_bytes: taken from the budget in advance, and not used yet.
    """

    def __init__(
        self,
        open_subfolder: Callable[[str], int],
        budget: DiskBudget,
        budget_bytes: int,
        on_damage: Callable[[], None],
    ) -> None:
        self._open_subfolder = open_subfolder
        self._budget = budget
        self._budget_bytes = budget_bytes
        self._on_damage = on_damage
        self._lock = threading.Lock()
        self._folders: dict[str, int] = {}
        self.room_bytes = 0

    def read(self, name: str, size_bytes: int, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` from ``offset`` of an object; False if it is not here.

        Args:
            name: the object's in the folder.
            size_bytes: the object's.
        """
        try:
            return _read(self._folder(name), name + SMALL_SUFFIX, size_bytes, offset, buffer)
        except _Damaged:
            log.warning("%s was torn or altered", name)
            self._on_damage()
        except OSError as error:
            log.warning("a cached object cannot be read: %s", error)
        return False

    def store(self, name: str, content: memoryview) -> None:
        """Store an object. If that fails, only speed is lost."""
        size_bytes = on_disk(len(content) + _END.size)
        try:
            if not self._take_room(size_bytes):
                return
            is_new = False
            try:
                is_new = self._write(name, content)
            finally:
                if not is_new:
                    self._give_room(size_bytes)
        except OSError as error:
            log.warning("an object was not cached: %s", error)

    def close(self) -> None:
        """Close the subfolders."""
        for descriptor in self._folders.values():
            os.close(descriptor)

    def _write(self, name: str, content: memoryview) -> bool:
        for _ in range(_WRITE_ATTEMPTS):
            try:
                return _write(self._folder(name), name + SMALL_SUFFIX, content)
            except FileNotFoundError:  # somebody deleted the folder
                self._folder(name, again=True)
            except EntryGone:
                continue
        raise OSError(f"{name} is replaced again and again")

    def _folder(self, name: str, *, again: bool = False) -> int:
        """The subfolder of an object. There are 16, which stay open. Raises OSError."""
        subfolder = f"s{name[0]}"
        descriptor = self._folders.get(subfolder)
        if descriptor is not None and not again:
            return descriptor
        made = self._open_subfolder(subfolder)
        descriptor = self._folders.setdefault(subfolder, made)  # atomic
        if descriptor != made:  # keep the old number, which other threads use
            os.dup2(made, descriptor, inheritable=False)
            os.close(made)
        return descriptor

    def _take_room(self, size_bytes: int) -> bool:
        """Take room for one file. False if there is none. Raises OSError."""
        with self._lock:
            if size_bytes <= self.room_bytes:
                self.room_bytes -= size_bytes
                return True
        if size_bytes > self._budget_bytes:
            return False
        many = max(size_bytes, min(_MOST_ROOM_BYTES, self._budget_bytes // _ROOM_DIVISOR))
        if not self._budget.reserve(many, _allocate_nothing):
            return False
        self._give_room(many - size_bytes)
        return True

    def _give_room(self, size_bytes: int) -> None:
        with self._lock:
            self.room_bytes += size_bytes


class _Damaged(Exception):
    """The file was not as it was written. It is deleted."""


def _allocate_nothing() -> None:
    """Do nothing: a file takes its space when it is written."""


def _read(directory: int, file: str, size_bytes: int, offset: int, buffer: memoryview) -> bool:
    """As :meth:`SmallObjects.read`. Raises _Damaged, OSError."""
    try:
        descriptor = open_own_file(directory, file, os.O_RDONLY)
    except (FileNotFoundError, EntryGone):
        return False
    try:
        whole_bytes, status = size_bytes + _END.size, os.fstat(descriptor)
        if status.st_size != whole_bytes:
            return False  # somebody is writing it, or was killed while writing it
        content = buffer
        if len(buffer) != size_bytes:
            content = memoryview(bytearray(size_bytes))
        end = bytearray(_END.size)
        if os.preadv(descriptor, [content, end], 0) != whole_bytes or end != _end(content):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file, dir_fd=directory)
            raise _Damaged
        if content is not buffer:
            buffer[:] = content[offset : offset + len(buffer)]
        if time.time() - status.st_mtime >= USE_STAMP_S:
            os.utime(descriptor)  # eviction uses this time
        return True
    finally:
        os.close(descriptor)


def _write(directory: int, file: str, content: memoryview) -> bool:
    """Write a file; False if it is there already.

    Raises:
        EntryGone: try again.
        OSError: it cannot be written. Nothing is left of it.
    """
    try:
        descriptor = os.open(file, _NEW, 0o600, dir_fd=directory)
    except FileExistsError:
        descriptor = open_own_file(directory, file)
        if not _is_to_be_written(descriptor, len(content) + _END.size):
            os.close(descriptor)
            return False
    try:
        _write_whole(descriptor, content)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(file, dir_fd=directory)
        raise
    finally:
        os.close(descriptor)
    return True


def _is_to_be_written(descriptor: int, whole_bytes: int) -> bool:
    """Whether a file is not whole: somebody is writing it, or was killed while writing it."""
    length = os.fstat(descriptor).st_size
    if length > whole_bytes:
        os.ftruncate(descriptor, 0)
    return length != whole_bytes


def _write_whole(descriptor: int, content: memoryview) -> None:
    if os.pwritev(descriptor, [content, _end(content)], 0) != len(content) + _END.size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # only a part fitted


def _end(content: memoryview) -> bytes:
    return _END.pack(_MAGIC, zlib.crc32(content))
