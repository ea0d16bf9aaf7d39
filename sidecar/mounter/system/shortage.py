"""Errors that say that something is lacking which others use up. Standard library only."""

from __future__ import annotations

import errno
from typing import Final

_LACKING: Final = frozenset(
    (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)
)
NO_THREAD: Final = "can't start new thread"  # Modules/_threadmodule.c


def lacks_resources(error: BaseException | None) -> bool:
    """Whether a process could not start for want of memory, threads, descriptors or disk.

    Also as the cause of another error.
    """
    while error is not None:
        if (
            isinstance(error, MemoryError)
            or (isinstance(error, OSError) and error.errno in _LACKING)
            or (isinstance(error, RuntimeError) and str(error) == NO_THREAD)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
