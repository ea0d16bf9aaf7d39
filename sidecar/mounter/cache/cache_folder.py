"""The folder of a disk cache, with directories and files that are ours alone.

Ours means: of this process's user, and closed to everybody else. Nothing else is read, written, or
followed. So only the same user (root, and so another sidecar) can change what is cached (decision
33). Anything else in place of a file is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sidecar.mounter.system.directories import (
    PathBlocked,
    make_child,
    open_child,
    open_directory,
    open_file,
)

MAP_SUFFIX = ".map"
SMALL_SUFFIX = ".small"
USE_STAMP_S = 5.0
"""How exact the order of eviction is."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_PRIVATE_MODE = 0o700
_ON_A_NEW_DISK = {"lost+found"}
_STAT_BLOCK_BYTES = 512
"""The unit of st_blocks (stat(2))."""


class EntryGone(Exception):
    """Try again: a file was deleted while it was opened, or was not ours, or its maker failed."""


class FoundEntry(NamedTuple):
    """The files of one object: the data file and its map, or the file of a small object.

    Attributes:
        occupied_bytes: on disk.
        used_s: when it was last used, in seconds since the epoch.
        subfolder, name: where the files are, without suffixes.
    """

    occupied_bytes: int
    used_s: float
    subfolder: str
    name: str


def open_folder(path: Path) -> int:
    """A descriptor of a cache's folder, made if missing. Raises OSError, also if others use it."""
    descriptor = open_directory(path, make=True, mode=_PRIVATE_MODE)
    is_open = os.fstat(descriptor).st_mode & _OTHERS
    if is_open and set(os.listdir(descriptor)) - _ON_A_NEW_DISK:
        os.close(descriptor)
        problem = f"`{path}` is no cache's alone: others use it; name a folder for the cache"
        raise PermissionError(errno.EPERM, problem, str(path))
    return _closed_to_others(descriptor, str(path))


def open_subfolder(folder: int, name: str, *, make: bool) -> int:
    """A descriptor of a subfolder. Raises OSError."""
    if make:
        descriptor = make_child(folder, name, name, mode=_PRIVATE_MODE)
    else:
        descriptor = open_child(folder, name, name)
    return _closed_to_others(descriptor, name)


def _closed_to_others(descriptor: int, path: str) -> int:
    """The descriptor of a directory that is ours, and closed to others from now on."""
    status = os.fstat(descriptor)
    if status.st_uid != _own_uid():
        os.close(descriptor)
        raise PermissionError(errno.EPERM, f"`{path}` belongs to user {status.st_uid}", path)
    if status.st_mode & _OTHERS:
        os.fchmod(descriptor, _PRIVATE_MODE)
    return descriptor


def open_own_file(directory: int, name: str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """A descriptor of a file that is ours alone.

    Raises:
        EntryGone: something else was there, and is deleted.
        OSError: it cannot be opened, made or deleted.
    """
    try:
        descriptor = open_file(directory, name, flags)
    except PathBlocked:
        _delete(directory, name)
        raise EntryGone from None
    status = os.fstat(descriptor)
    if is_private(status):
        return descriptor
    os.close(descriptor)
    if status.st_nlink:  # if not, it was deleted, and another file may have the name by now
        _delete(directory, name)
    raise EntryGone


def is_private(status: os.stat_result) -> bool:
    """Whether a file has one name, is ours, and is closed to others."""
    return status.st_nlink == 1 and not status.st_mode & _OTHERS and status.st_uid == _own_uid()


@functools.cache
def _own_uid() -> int:
    """This process's user, which never changes."""
    return os.geteuid()


def _delete(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def files_of(name: str) -> tuple[str, str, str]:
    """The names of the files that an object may have."""
    return name, name + MAP_SUFFIX, name + SMALL_SUFFIX


def scan(folder: int) -> Iterator[FoundEntry]:
    """Every object in a folder. Subfolders that are not ours are left out. Raises OSError."""
    for subfolder in os.listdir(folder):
        if len(subfolder) != 2:
            continue
        try:
            descriptor = open_subfolder(folder, subfolder, make=False)
        except OSError:
            continue
        try:
            for name in {found.partition(".")[0] for found in os.listdir(descriptor)}:
                used, stamp = 0, 0.0
                for file in files_of(name):
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(file, dir_fd=descriptor, follow_symlinks=False)
                        used += status.st_blocks * _STAT_BLOCK_BYTES
                        stamp = status.st_mtime
                yield FoundEntry(used, stamp, subfolder, name)
        finally:
            os.close(descriptor)


def occupied_bytes(path: Path) -> int:
    """The bytes on disk of a cache folder's files; 0 if there is no folder. Raises OSError."""
    try:
        folder = open_directory(path)
    except FileNotFoundError:
        return 0
    try:
        return sum(found.occupied_bytes for found in scan(folder))
    finally:
        os.close(folder)
