"""The mount table: whether a path is a mount point, and unmounting it."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

_MNT_DETACH = 2


def is_mounted(path: Path) -> bool:
    """Whether something is mounted at ``path``, which must be absolute and without symlinks.

    Read from the table, because stat(2) hangs on a FUSE mount whose daemon is gone.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(_unescape(line.split(" ")[4]) == str(path) for line in table)


def detach(path: Path) -> None:
    """Unmount ``path`` lazily until nothing is mounted there (umount2(2)).

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    while is_mounted(path):
        if libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))


def _unescape(text: str) -> str:
    """Undo proc(5)'s octal escapes of blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
