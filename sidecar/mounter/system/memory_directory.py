"""A directory in memory that no path leads to."""

from __future__ import annotations

import ctypes
import errno
import os

# The same on every architecture; glibc has them since 2.36.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
# include/uapi/linux/mount.h
_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_FSMOUNT_CLOEXEC = 1
_MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV, _MOUNT_ATTR_NOEXEC = 2, 4, 8

_libc = ctypes.CDLL(None, use_errno=True)


def memory_directory() -> int:
    """A descriptor of the root of a new tmpfs, which is freed with its last descriptor.

    Its files have pages as large as each write, if the kernel can (`huge=` in tmpfs(5)). A memfd
    has pages of 4 KiB, unless the node's administrator says otherwise, and taking and freeing these
    is half the cost of a write. Raises OSError.
    """
    context = _call(_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC)
    try:
        _set(context, b"mode", b"0700")
        try:
            _set(context, b"huge", b"within_size")
        except OSError as error:
            if error.errno != errno.EINVAL:  # that is a kernel without such pages
                raise
        _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        attributes = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOEXEC
        root = _call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)
    try:
        # The descriptor of fsmount(2) leads to the root, but cannot list it.
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    finally:
        os.close(root)


def _set(context: int, key: bytes, value: bytes) -> None:
    _call(_FSCONFIG, context, _FSCONFIG_SET_STRING, key, value, 0)


def _call(number: int, *arguments: bytes | int | None) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
